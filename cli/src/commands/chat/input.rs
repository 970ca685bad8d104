//! What a person types, or a program writes: lines, read on a thread of their own, since reading blocks.

use std::{
    io::{self, BufRead, Read as _},
    thread,
};

use tokio::sync::mpsc;

/// Lines that were read and not taken yet. When it is full the thread waits, and with it whoever writes to us.
const QUEUE: usize = 16;

/// Above what any server takes as one message.
const MAX_LINE: u64 = 256 * 1024;

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Line(String),
    /// A line that cannot be a message.
    Unusable(&'static str),
}

/// Reads standard input until its end, or until nobody takes what it reads. The thread is not waited for: it may be in a
/// read that never returns.
pub(super) fn standard_input() -> io::Result<mpsc::Receiver<Input>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut input = io::stdin().lock();
        while let Ok(Some(line)) = read_line(&mut input) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// The next line; `None` at the end.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Input>> {
    let mut line = Vec::new();
    let read = input.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line)?;
    if read == 0 {
        return Ok(None);
    }
    if line.len() as u64 > MAX_LINE && !line.ends_with(b"\n") {
        while !line.ends_with(b"\n") {
            line.clear();
            if input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
        }
        return Ok(Some(Input::Unusable("a line is longer than any message may be")));
    }
    let text = match String::from_utf8(line) {
        Ok(text) => text,
        Err(_) => return Ok(Some(Input::Unusable("a line is not UTF-8"))),
    };
    Ok(Some(Input::Line(text.trim_end_matches(['\n', '\r']).to_owned())))
}

/// What a line means in a conversation with a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Say(String),
    Nothing,
    Quit,
    End,
    /// A new session, with this model or the default one.
    New(String),
    Models,
    Help,
    Unknown(String),
}

impl Command {
    /// Reads a line. A message that begins with a slash is written with two.
    pub(crate) fn parse(line: &str) -> Self {
        if line.trim().is_empty() {
            return Self::Nothing;
        }
        let Some(rest) = line.strip_prefix('/') else { return Self::Say(line.to_owned()) };
        if rest.starts_with('/') {
            return Self::Say(rest.to_owned());
        }
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        match (name, argument.trim()) {
            ("quit" | "exit" | "q", "") => Self::Quit,
            ("end", "") => Self::End,
            ("new", model) => Self::New(model.to_owned()),
            ("models", "") => Self::Models,
            ("help" | "?", "") => Self::Help,
            _ => Self::Unknown(line.to_owned()),
        }
    }
}

/// What the commands do.
pub(super) const HELP: &str = "\
/new [MODEL]  begin another session; where only one may be active, this one ends
/end          end this session
/models       the models that can answer
/quit         leave; the session goes on, and so does a running reply
/help         this
Ctrl-C        stop the running reply; twice: leave
A message that begins with a slash is written with two.";

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mut bytes: &[u8]) -> Vec<Input> {
        std::iter::from_fn(|| read_line(&mut bytes).unwrap()).collect()
    }

    #[test]
    fn lines_are_read_whatever_ends_them() {
        let line = |text: &str| Input::Line(text.to_owned());
        assert_eq!(lines(b"a\r\n\nb c\nlast"), [line("a"), line(""), line("b c"), line("last")]);
        assert_eq!(lines(b""), []);
    }

    #[test]
    fn what_cannot_be_a_message_is_skipped_and_reading_goes_on() {
        let mut bytes = vec![b'x'; 3 * usize::try_from(MAX_LINE).unwrap()];
        bytes.extend_from_slice(b"\n\xff\nnext\n");
        let read = lines(&bytes);
        assert!(matches!(read[..], [Input::Unusable(_), Input::Unusable(_), Input::Line(_)]), "{}", read.len());
    }

    #[test]
    fn a_slash_begins_a_command_and_two_a_message() {
        for (line, command) in [
            ("hello /quit", Command::Say("hello /quit".to_owned())),
            ("//etc/passwd", Command::Say("/etc/passwd".to_owned())),
            ("  ", Command::Nothing),
            ("/quit", Command::Quit),
            ("/new", Command::New(String::new())),
            ("/new  llama3 ", Command::New("llama3".to_owned())),
            ("/help", Command::Help),
            ("/quit now", Command::Unknown("/quit now".to_owned())),
            ("/", Command::Unknown("/".to_owned())),
        ] {
            assert_eq!(Command::parse(line), command, "{line}");
        }
    }
}
