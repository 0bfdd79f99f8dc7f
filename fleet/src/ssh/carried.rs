//! A stream that runs through a connection, and ends with it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Writing fails with `BrokenPipe` once the connection is over. Without that, whoever waits for the other side to make
/// room would wait for ever: russh does not wake him.
pub(super) struct Carried<S> {
    stream: S,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Carried<S> {
    pub(super) fn new(stream: S, over: CancellationToken) -> Self {
        Self { stream, over: Box::pin(over.cancelled_owned()) }
    }

    fn poll_carrier(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.over.as_mut().poll(cx).is_ready() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Carried<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Carried<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_carrier(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_carrier(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_carrier(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
