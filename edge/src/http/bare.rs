//! What hyper answers by itself: 400, 414 or 431 to a request whose head it cannot take. No handler sees such a request, so
//! the security headers are put into the answer on its way to the socket.

use std::{
    io,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// In every answer of the router, and in none of hyper's own.
const OURS: &[u8] = b"\r\nx-content-type-options:";

const END: &[u8] = b"\r\n\r\n";

/// A stream under an HTTP connection.
#[derive(Debug)]
pub(crate) struct Bare<S> {
    stream: S,
    /// An answer of hyper's with the headers in it, how much of it is written, and how long hyper thinks it is.
    instead: Option<(Vec<u8>, usize, usize)>,
}

impl<S> Bare<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, instead: None }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

/// The answer with the headers, if it is one of hyper's own: those have no body and are written in one piece. A part of a
/// body cannot look like one: ours are JSON, or files that come with their head.
fn with_headers(written: &[u8]) -> Option<Vec<u8>> {
    static HEADERS: LazyLock<String> = LazyLock::new(crate::headers::as_text);
    let is_refusal = written.starts_with(b"HTTP/1.1 4") || written.starts_with(b"HTTP/1.0 4");
    if !is_refusal || !written.ends_with(END) || written.windows(OURS.len()).any(|part| part == OURS) {
        return None;
    }
    let head = &written[..written.len() - 2];
    Some([head, HEADERS.as_bytes(), b"\r\n"].concat())
}

impl<S: AsyncRead + Unpin> AsyncRead for Bare<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bare<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, instead } = &mut *self;
        if instead.is_none() {
            *instead = with_headers(buffer).map(|answer| (answer, 0, buffer.len()));
        }
        let Some((answer, written, length)) = instead else { return Pin::new(stream).poll_write(cx, buffer) };
        while *written < answer.len() {
            match std::task::ready!(Pin::new(&mut *stream).poll_write(cx, &answer[*written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => *written += more,
            }
        }
        let length = *length;
        *instead = None;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn only_an_answer_of_hypers_own_is_changed_however_slowly_it_is_taken() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
        for (written, changed) in [
            (bare, true),
            ("HTTP/1.1 404 Not Found\r\nx-content-type-options: nosniff\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.1 400 Bad Request\r\n", false),
            ("{}", false),
        ] {
            let (near, mut far) = tokio::io::duplex(7);
            let mut near = Bare::new(near);
            let mut text = String::new();
            let (sent, read) = tokio::join!(
                async {
                    near.write_all(written.as_bytes()).await?;
                    near.shutdown().await
                },
                far.read_to_string(&mut text)
            );
            sent.unwrap();
            read.unwrap();
            if changed {
                assert!(text.starts_with(written.trim_end()), "{text}");
                assert!(text.contains("\r\nx-content-type-options: nosniff\r\n"), "{text}");
                assert!(text.contains("\r\nx-frame-options: DENY\r\n") && text.ends_with("\r\n\r\n"), "{text}");
            } else {
                assert_eq!(text, written);
            }
        }
    }
}
