//! WebSocket frames by hand: a load generator has to cost less than what it loads.

use anyhow::{Result, bail, ensure};

/// RFC 6455 section 5.2.
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// Any key will do: servers must not look at it.
const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A client's frame with text.
pub(crate) fn text(payload: &[u8]) -> Vec<u8> {
    masked(TEXT, payload)
}

/// A client's frame with bytes.
pub(crate) fn binary(payload: &[u8]) -> Vec<u8> {
    masked(BINARY, payload)
}

/// The answer to a ping.
pub(crate) fn pong(payload: &[u8]) -> Vec<u8> {
    masked(PONG, payload)
}

fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![FINAL | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len @ 0..126), _) => out.push(MASKED | len),
        (_, Ok(len)) => {
            out.push(MASKED | 126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&KEY);
    out.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

/// What a server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received<'a> {
    Message(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
}

/// The first frame of `input`, and how many bytes it takes; `None` when it is not complete.
pub(crate) fn parse(input: &[u8]) -> Result<Option<(Received<'_>, usize)>> {
    let [first, second, rest @ ..] = input else { return Ok(None) };
    ensure!(second & MASKED == 0, "a server's frame is masked");
    let (length, head) = match (second, rest) {
        (126, [a, b, ..]) => (usize::from(u16::from_be_bytes([*a, *b])), 4),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            (usize::try_from(u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))?, 10)
        }
        (126 | 127, _) => return Ok(None),
        (length, _) => (usize::from(*length), 2),
    };
    let Some(payload) = input.get(head..head + length) else { return Ok(None) };
    let received = match first & 0x0F {
        TEXT | BINARY if first & FINAL != 0 => Received::Message(payload),
        PING => Received::Ping(payload),
        PONG => Received::Pong,
        CLOSE => {
            let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            bail!("closed with {code:?} {}", String::from_utf8_lossy(payload.get(2..).unwrap_or_default()))
        }
        opcode => bail!("a frame with opcode {opcode}, or in fragments"),
    };
    Ok(Some((received, head + length)))
}
