//! A command on a host.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, Sig};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::carried::Carried;

/// How much output may wait for its reader, in bytes.
const BUFFER: usize = 64 * 1024;

/// How much of the end of standard error is kept, in bytes.
const STDERR: usize = 8 * 1024;

/// SSH's number for standard error (RFC 4254, 5.2).
const EXTENDED_DATA_STDERR: u32 = 1;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It ended by itself, with this code.
    Code(u32),
    /// A signal ended it: its name without `SIG`.
    Signal(String),
    /// The connection ended before the command's end was heard of: whether it still runs, and what it did, is unknown.
    Lost,
}

/// What a command writes to standard output; the end is the command's, or that of the connection.
pub type Stdout = BufReader<DuplexStream>;

/// A running command. Dropping it does not end the command, but its standard input.
pub struct Process {
    /// What is written here, the command reads. `shutdown`, or dropping it, is the end of the input.
    pub stdin: Option<Stdin>,
    /// Must be read, or dropped, for the command to go on: there is room for some 64 KiB only.
    pub stdout: Option<Stdout>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    exit: JoinHandle<Exit>,
}

impl Process {
    /// Over a channel in which a command was started.
    pub(super) fn new(channel: Channel<Msg>) -> Self {
        let (read, write) = channel.split();
        let (output, stdout) = tokio::io::duplex(BUFFER);
        let (end, ended) = oneshot::channel::<()>();
        let over = CancellationToken::new();
        let stderr = Arc::<Mutex<VecDeque<u8>>>::default();

        let stdin = Stdin { data: Carried::new(Box::pin(write.make_writer()), over.clone()), end: Some(end) };
        tokio::spawn(async move {
            let _ = ended.await;
            // The connection may have ended before.
            let _ = write.eof().await;
        });
        let exit = tokio::spawn(drain(read, output, stderr.clone(), over));
        Self { stdin: Some(stdin), stdout: Some(BufReader::new(stdout)), stderr, exit }
    }

    /// Waits for the end. Ends the input first, and drops the output, if they are still here.
    pub async fn wait(&mut self) -> Exit {
        self.stdin = None;
        self.stdout = None;
        (&mut self.exit).await.unwrap_or(Exit::Lost)
    }

    /// The last few KiB of standard error so far.
    pub fn stderr(&self) -> String {
        let mut tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(tail.make_contiguous()).into_owned()
    }
}

/// Reads all that comes from the command, until the channel is closed.
async fn drain(mut channel: ChannelReadHalf, mut output: DuplexStream, stderr: Arc<Mutex<VecDeque<u8>>>, over: CancellationToken) -> Exit {
    let _over = over.drop_guard();
    let mut exit = Exit::Lost;
    while let Some(message) = channel.wait().await {
        match message {
            // An error: nobody reads it any more.
            ChannelMsg::Data { data } => drop(output.write_all(&data).await),
            ChannelMsg::ExtendedData { data, ext: EXTENDED_DATA_STDERR } => {
                let mut tail = stderr.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend(data);
                let surplus = tail.len().saturating_sub(STDERR);
                tail.drain(..surplus);
            }
            ChannelMsg::Eof => drop(output.shutdown().await),
            ChannelMsg::ExitStatus { exit_status } => exit = Exit::Code(exit_status),
            ChannelMsg::ExitSignal { signal_name, .. } => exit = Exit::Signal(name(signal_name)),
            _ => {}
        }
    }
    exit
}

fn name(signal: Sig) -> String {
    match signal {
        Sig::Custom(name) => name,
        known => format!("{known:?}"),
    }
}

/// A command's standard input. Writing fails with `BrokenPipe` once the command has ended.
pub struct Stdin {
    data: Carried<Pin<Box<dyn AsyncWrite + Send>>>,
    end: Option<oneshot::Sender<()>>,
}

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.end {
            Some(_) => Pin::new(&mut self.data).poll_write(cx, data),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// What is written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end = None;
        Poll::Ready(Ok(()))
    }
}
