//! Servers that say what a test wants, when it wants.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use xtask::netns::Namespace;

use crate::client;

/// What a server does with a connection.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Reads something, says that, and closes.
    Says(&'static str),
    /// Says that at once.
    Greets(&'static str),
    /// Reads something, says that, and resets the connection.
    Resets(&'static str),
    /// Reads something, says that, and stays silent until the other end has had enough.
    Stalls(&'static str),
}

/// A server that gives the next answer whenever the test allows it.
pub struct Scripted {
    arrivals: Receiver<()>,
    answers: Sender<Answer>,
}

/// How long a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

impl Scripted {
    /// Starts one within a namespace. It ends with the namespace's connections, at the latest with the test.
    ///
    /// # Errors
    ///
    /// The address can't be listened on.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = client::within(namespace, move || TcpListener::bind(address))?;
        let (arrived, arrivals) = channel();
        let (answers, next) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if arrived.send(()).is_err() {
                    return;
                }
                let Ok(answer) = next.recv() else { return };
                // Whoever goes is gone.
                let _: std::io::Result<()> = give(stream, answer);
            }
        });
        Ok(Self { arrivals, answers })
    }

    /// Waits until somebody connects. From then on it is waiting for an answer.
    ///
    /// # Errors
    ///
    /// Nobody does.
    pub fn wait(&self) -> Result<()> {
        self.arrivals.recv_timeout(PATIENCE).context("nobody connects")
    }

    /// Gives whoever has connected its answer.
    ///
    /// # Errors
    ///
    /// The server has ended.
    pub fn answer(&self, answer: Answer) -> Result<()> {
        self.answers.send(answer).context("the server has ended")
    }
}

fn give(mut stream: TcpStream, answer: Answer) -> std::io::Result<()> {
    let mut request = [0; 4096];
    if !matches!(answer, Answer::Greets(_)) {
        let _: usize = stream.read(&mut request)?;
    }
    match answer {
        Answer::Says(text) | Answer::Greets(text) => stream.write_all(text.as_bytes())?,
        Answer::Resets(text) => {
            stream.write_all(text.as_bytes())?;
            let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, Linger, &at_once)?;
            return Ok(());
        }
        Answer::Stalls(text) => {
            stream.write_all(text.as_bytes())?;
            thread::spawn(move || while stream.read(&mut request).is_ok_and(|count| count > 0) {});
            return Ok(());
        }
    }
    stream.shutdown(Shutdown::Write)?;
    while stream.read(&mut request)? > 0 {}
    Ok(())
}
