//! How a conversation looks in the terminal. All text of others is made harmless here, and only here.

use std::{
    fmt,
    io::{self, Write},
};

use chatbox_proto::v1::{FinishReason, Message, SenderRole, Usage};

use super::conversation::{Shown, name};
use crate::{
    plain_text::{PlainText, plain, plain_line},
    terminal::{FAILED, FAINT, LINK, STRONG, WARNING},
};

/// For whom it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A person: who says what, how replies end, a prompt.
    Terminal,
    /// A program: our replies and nothing else on standard output; what goes wrong on standard error.
    Replies,
    /// A program that reads the events themselves.
    Events,
}

/// Writes a conversation.
pub(super) struct View {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    style: Style,
    /// State of the running reply's escape sequences.
    reply: PlainText,
    /// Nobody asked for the running reply here.
    muted: bool,
    /// The cursor is where a line begins.
    at_start: bool,
    /// The prompt waits on the last line.
    prompted: bool,
    /// The user we are.
    you: String,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("style", &self.style).finish_non_exhaustive()
    }
}

impl View {
    pub(super) fn new(style: Style, out: Box<dyn Write>, err: Box<dyn Write>) -> Self {
        let reply = PlainText::default();
        Self { out, err, style, reply, muted: false, at_start: true, prompted: false, you: String::new() }
    }

    pub(super) fn style(&self) -> Style {
        self.style
    }

    /// Says who we are.
    pub(super) fn set_you(&mut self, user_id: &str) {
        user_id.clone_into(&mut self.you);
    }

    /// Asks for a line, unless it did already.
    pub(super) fn prompt(&mut self) -> io::Result<()> {
        if self.style == Style::Terminal && !self.prompted {
            self.fresh_line()?;
            write!(self.out, "{LINK}>{LINK:#} ")?;
            self.out.flush()?;
            self.prompted = true;
        }
        Ok(())
    }

    /// The line was entered, and the terminal has moved to the next one.
    pub(super) fn entered(&mut self) {
        (self.prompted, self.at_start) = (false, true);
    }

    /// Something of our own to say: to a person where they look, to a program on standard error.
    pub(super) fn notice(&mut self, text: &str) -> io::Result<()> {
        if self.style == Style::Terminal {
            self.fresh_line()?;
            for line in plain(text).lines() {
                writeln!(self.out, "{FAINT}{line}{FAINT:#}")?;
            }
            return self.out.flush();
        }
        writeln!(self.err, "{WARNING}chatbox:{WARNING:#} {}", plain_line(text))
    }

    /// A line of text as it is.
    pub(super) fn raw(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    pub(super) fn show(&mut self, shown: &Shown) -> io::Result<()> {
        match self.style {
            Style::Terminal => self.show_person(shown),
            Style::Replies => self.show_program(shown),
            Style::Events => Ok(()),
        }
    }

    fn show_person(&mut self, shown: &Shown) -> io::Result<()> {
        match shown {
            Shown::Message(message) => {
                self.fresh_line()?;
                writeln!(self.out, "{}", self::message(message, &self.you))?;
            }
            Shown::ReplyStarted { model, .. } => {
                self.fresh_line()?;
                self.reply = PlainText::default();
                writeln!(self.out, "{STRONG}{}{STRONG:#}", plain_line(model))?;
            }
            Shown::ReplyText(text) => self.reply_text(text)?,
            Shown::ReplyRestarted => {
                self.reply = PlainText::default();
                self.notice("— the text above is out of date; the reply is:")?;
            }
            Shown::ReplyEnded { finish, usage } => {
                self.fresh_line()?;
                writeln!(self.out, "{}", ending(*finish, usage.as_ref()))?;
            }
            Shown::Refused(why) => {
                self.fresh_line()?;
                writeln!(self.out, "{FAILED}not sent:{FAILED:#} {}", plain_line(why))?;
            }
            Shown::Notice(text) => self.notice(text)?,
        }
        self.out.flush()
    }

    fn show_program(&mut self, shown: &Shown) -> io::Result<()> {
        match shown {
            Shown::Message(_) => {}
            Shown::Notice(text) => self.notice(text)?,
            Shown::ReplyStarted { ours, .. } => {
                self.reply = PlainText::default();
                self.muted = !ours;
            }
            Shown::ReplyText(_) | Shown::ReplyRestarted | Shown::ReplyEnded { .. } if self.muted => {}
            Shown::ReplyText(text) => self.reply_text(text)?,
            Shown::ReplyRestarted => {
                self.reply = PlainText::default();
                self.fresh_line()?;
                self.notice("the reply was generated again; its text follows")?;
            }
            Shown::ReplyEnded { finish, .. } => {
                self.fresh_line()?;
                if *finish != FinishReason::Stop {
                    self.notice(&format!("the reply is not complete: {}", reason(*finish)))?;
                }
            }
            Shown::Refused(why) => self.notice(&format!("a message was not taken: {why}"))?,
        }
        self.out.flush()
    }

    fn reply_text(&mut self, text: &str) -> io::Result<()> {
        if self.prompted {
            self.fresh_line()?;
        }
        let text = self.reply.push(text);
        if let Some(last) = text.chars().last() {
            write!(self.out, "{text}")?;
            self.at_start = last == '\n';
        }
        Ok(())
    }

    fn fresh_line(&mut self) -> io::Result<()> {
        if !self.at_start || self.prompted {
            writeln!(self.out)?;
            (self.at_start, self.prompted) = (true, false);
        }
        Ok(())
    }
}

/// A message with who wrote it, for a person. `owner` is whose session it is; their messages are called after the prompt
/// they were typed at.
pub(crate) fn message(message: &Message, owner: &str) -> String {
    let sender = message.sender.as_ref();
    let of_owner = sender.is_some_and(|sender| sender.role() == SenderRole::User && sender.user_id == owner);
    let text = plain(&message.text);
    match &message.reply {
        Some(reply) => {
            let end = ending(reply.finish_reason(), reply.usage.as_ref());
            let line_end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
            format!("{STRONG}{}{STRONG:#}\n{text}{line_end}{end}", plain_line(&reply.model))
        }
        None if of_owner => format!("{LINK}>{LINK:#} {text}"),
        None => format!("{LINK}{} >{LINK:#} {text}", plain_line(&name(sender))),
    }
}

fn ending(finish: FinishReason, usage: Option<&Usage>) -> String {
    let tokens = usage.map(|usage| {
        let about = if usage.estimated { "about " } else { "" };
        format!(" · {about}{} + {} tokens", usage.prompt_tokens, usage.completion_tokens)
    });
    let style = if finish == FinishReason::Stop { FAINT } else { WARNING };
    format!("{style}— {}{}{style:#}", reason(finish), tokens.unwrap_or_default())
}

/// How a reply ended, in words.
fn reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Unspecified => "still running",
        FinishReason::Stop => "complete",
        FinishReason::Length => "cut at the model's limit",
        FinishReason::Cancelled => "stopped",
        FinishReason::Superseded => "a person took over",
        FinishReason::Interrupted => "interrupted: the server went away",
        FinishReason::ProviderError => "the model's provider failed",
        FinishReason::Filtered => "withheld by a filter",
        FinishReason::Timeout => "the model was too slow",
        FinishReason::BudgetExhausted => "the budget is used up",
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use chatbox_proto::v1::{Reply, Sender};

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Rc<RefCell<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Screen {
        /// Without our own colours, and with whatever else is in it.
        fn text(&self) -> String {
            let text = String::from_utf8(self.0.borrow().clone()).unwrap();
            [FAILED, WARNING, LINK, STRONG, FAINT]
                .iter()
                .fold(text, |text, style| text.replace(&format!("{style}"), "").replace(&format!("{style:#}"), ""))
        }
    }

    fn view(style: Style) -> (View, Screen, Screen) {
        let (out, err) = (Screen::default(), Screen::default());
        (View::new(style, Box::new(out.clone()), Box::new(err.clone())), out, err)
    }

    fn started(ours: bool) -> Shown {
        Shown::ReplyStarted { model: "de\u{7}mo".to_owned(), ours }
    }

    fn text(text: &str) -> Shown {
        Shown::ReplyText(text.to_owned())
    }

    fn ended(finish: FinishReason) -> Shown {
        Shown::ReplyEnded { finish, usage: Some(Usage { prompt_tokens: 3, completion_tokens: 4, ..Usage::default() }) }
    }

    #[test]
    fn a_person_sees_who_says_what_and_how_it_ended() {
        let (mut view, out, _) = view(Style::Terminal);
        view.set_you("alice");
        let sender =
            |user: &str| Some(Sender { role: SenderRole::User.into(), user_id: user.to_owned(), ..Sender::default() });
        let said = |user: &str, text: &str| {
            let message = Message { sender: sender(user), text: text.to_owned(), ..Message::default() };
            Shown::Message(Box::new(message))
        };
        view.prompt().unwrap();
        view.prompt().unwrap();
        for shown in [
            said("alice", "from my phone"),
            said("bob\u{1b}[2J", "hi\u{1b}[31m"),
            started(true),
            text("one \u{1b}[3"),
            text("1mtwo"),
            ended(FinishReason::Length),
            Shown::Refused("no\nway".to_owned()),
        ] {
            view.show(&shown).unwrap();
        }
        view.prompt().unwrap();
        let expected = "> \n> from my phone\nbob > hi\ndemo\none two\n\
            — cut at the model's limit · 3 + 4 tokens\nnot sent: no way\n> ";
        assert_eq!(out.text(), expected);
    }

    #[test]
    fn a_program_gets_its_own_replies_and_complaints_elsewhere() {
        let (mut view, out, err) = view(Style::Replies);
        for shown in [
            started(false),
            text("not ours"),
            ended(FinishReason::Stop),
            started(true),
            text("ours\u{1b}]0;x"),
            text("\u{7}!"),
            ended(FinishReason::Stop),
            started(true),
            text("half\n"),
            ended(FinishReason::ProviderError),
            Shown::Refused("too long".to_owned()),
        ] {
            view.show(&shown).unwrap();
        }
        assert_eq!(out.text(), "ours!\nhalf\n");
        let complaints = "chatbox: the reply is not complete: the model's provider failed\n\
            chatbox: a message was not taken: too long\n";
        assert_eq!(err.text(), complaints);
    }

    #[test]
    fn a_stored_reply_is_shown_like_a_streamed_one() {
        let reply = Reply { finish_reason: FinishReason::Stop.into(), model: "demo".to_owned(), ..Reply::default() };
        let stored = Message { text: "a\u{9b}2Jb".to_owned(), reply: Some(reply), ..Message::default() };
        let (mut view, out, _) = view(Style::Terminal);
        view.raw(&message(&stored, "")).unwrap();
        assert_eq!(out.text(), "demo\nab\n— complete\n");
    }
}
