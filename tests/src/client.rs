//! Clients of the service.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    ops::ControlFlow,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{setsockopt, sockopt},
};
use xtask::netns::Namespace;

use crate::{
    bed::{Bed, SERVICE},
    wait::{PATIENCE, wait_until},
};

/// A keep-alive connection of an HTTP client.
pub struct Connection(TcpStream);

impl Connection {
    /// Connects from within a namespace.
    ///
    /// # Errors
    ///
    /// It can't.
    pub fn open(namespace: &Namespace, address: &str) -> Result<Self> {
        let address: SocketAddr = address.parse()?;
        within(namespace, move || Self::connect(address))
    }

    /// Connects from within the thread's own namespace.
    ///
    /// # Errors
    ///
    /// It can't.
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// The client's address and port.
    ///
    /// # Errors
    ///
    /// The socket doesn't say.
    pub fn local_address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// Ends the connection by a reset, so that its port is free at once.
    ///
    /// # Errors
    ///
    /// The socket can't be told so.
    pub fn abort(self) -> Result<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        Ok(setsockopt(&self.0, sockopt::Linger, &linger)?)
    }

    /// Waits, without sending anything, until the other end resets the connection.
    ///
    /// # Errors
    ///
    /// It doesn't for so long.
    pub fn wait_for_reset(&mut self, patience: Duration) -> Result<()> {
        self.0.set_read_timeout(Some(patience))?;
        match self.0.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => bail!("{other:?} instead of a reset"),
        }
    }

    /// Does a request, and returns the answer's body: the name of who answered.
    ///
    /// # Errors
    ///
    /// The connection breaks, or the answer isn't one.
    pub fn request(&mut self) -> Result<String> {
        self.0.write_all(b"GET /client/ HTTP/1.1\r\nHost: test\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let count = self.0.read(&mut buffer)?;
            ensure!(count > 0, "closed");
            answer.extend(&buffer[..count]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && body.ends_with('\n')
            {
                ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
                return Ok(body.trim().to_owned());
            }
        }
    }
}

/// What a client of the service does.
impl Bed {
    /// Does one request on a connection of its own, and returns the name of who answered.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn request(&self) -> Result<String> {
        self.open()?.request()
    }

    /// The same, but gives up after a second.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn request_within_a_second(&self) -> Result<String> {
        let url = format!("http://{SERVICE}/client/");
        self.client.run("curl", &["-sSf", "--max-time", "1", &url])
    }

    /// Opens a connection from the client to the service.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn open(&self) -> Result<Connection> {
        Connection::open(&self.client, SERVICE)
    }
}

/// Does something within a namespace: what is opened there stays there.
///
/// # Errors
///
/// The namespace is gone, or it fails.
pub fn within<T: Send + 'static>(
    namespace: &Namespace,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let path = Path::new("/run/netns").join(namespace.name());
    // A thread of its own, since a thread that has changed its namespace is of no other use.
    let thread = thread::spawn(move || -> Result<T> {
        setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        Ok(work()?)
    });
    thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

/// Calls `work` with 0, 1, 2 and so on at a steady pace within a namespace, until it says that it is enough.
/// Several threads take turns, so that one which waits doesn't delay the others much.
///
/// # Errors
///
/// The namespace is gone, or `work` panics.
pub fn at_pace(
    namespace: &Namespace,
    threads: u32,
    interval: Duration,
    work: impl Fn(u32) -> ControlFlow<()> + Send + Sync + 'static,
) -> Result<()> {
    let start = Instant::now();
    let work = Arc::new(work);
    let turns = move || {
        let turns = |first| {
            let work = Arc::clone(&work);
            thread::spawn(move || {
                for number in (first..).step_by(threads as usize) {
                    thread::sleep((interval * number).saturating_sub(start.elapsed()));
                    if work(number).is_break() {
                        return;
                    }
                }
            })
        };
        for thread in (0..threads).map(turns).collect::<Vec<_>>() {
            thread.join().map_err(|_| std::io::Error::other("a thread panicked"))?;
        }
        Ok(())
    };
    within(namespace, turns)
}

/// Does a request whose answer's end is that of the connection.
///
/// # Errors
///
/// The connection breaks, or the answer isn't one.
pub fn exchange(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /client/ HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    Ok(())
}

/// Sends a datagram so many times from one port, each after the answer to the one before. Returns the
/// address and port that it sent from, and the last answer.
///
/// # Errors
///
/// An answer doesn't come within `patience`.
pub fn ask(
    namespace: &Namespace,
    address: &str,
    question: &str,
    times: usize,
    patience: Duration,
) -> Result<(SocketAddr, String)> {
    let address: SocketAddr = address.parse()?;
    let socket = within(namespace, move || {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = vec![0; 65_535];
    let mut answer = String::new();
    for _ in 0..times {
        socket.send(question.as_bytes())?;
        let length = socket.recv(&mut buffer)?;
        answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    }
    Ok((socket.local_addr()?, answer))
}

/// Opens connections from the client, and says which backend each of them goes to.
///
/// # Errors
///
/// One of them fails.
pub fn held(bed: &Bed, count: usize) -> Result<Vec<(String, Connection)>> {
    held_to(bed, SERVICE, count)
}

/// The same to another address than the service's.
///
/// # Errors
///
/// One of them fails.
pub fn held_to(bed: &Bed, address: &str, count: usize) -> Result<Vec<(String, Connection)>> {
    let open = |_| {
        let mut connection = Connection::open(&bed.client, address)?;
        Ok((connection.request()?, connection))
    };
    (0..count).map(open).collect()
}

/// `wrk` under way.
pub struct Load(Child);

impl Load {
    /// Starts requests from the client over keep-alive connections, and waits until all are open.
    ///
    /// # Errors
    ///
    /// It can't be started.
    pub fn start(bed: &Bed, connections: u64, seconds: u32) -> Result<Self> {
        let opened = || -> Result<u64> {
            let services = bed.json(&["list", "services", "--json"])?;
            services[0]["new_flows"].as_u64().context("new_flows")
        };
        let before = opened()?;
        let mut command = bed.client.command("wrk");
        command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")]);
        command.args(["--timeout", "5s", &format!("http://{SERVICE}/client/")]);
        let load = Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        wait_until("load flows", || Ok(opened()? >= before + connections))?;
        Ok(load)
    }

    /// Waits for its end, and demands that no request failed. Returns how many there were.
    ///
    /// # Errors
    ///
    /// A request failed.
    pub fn finish(self) -> Result<u64> {
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        ensure!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
        let requests = text.lines().find_map(|line| line.split_once(" requests in "));
        let count = requests.and_then(|(count, _)| count.trim().parse().ok());
        count.with_context(|| format!("no count in {text}"))
    }
}

/// The SHA-256 of a file, by the system's own tool.
///
/// # Errors
///
/// It can't be read.
pub fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().map(str::to_owned).context("no sum")
}

/// The index and the hardware address of a namespace's only interface.
///
/// # Errors
///
/// It has none.
pub fn interface(namespace: &Namespace) -> Result<(u32, [u8; 6])> {
    let text = namespace.ip(&["-o", "link", "show", "eth0"])?;
    let index = text.split(':').next().context("an index")?.trim().parse()?;
    let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let bytes: Result<Vec<u8>, _> =
        mac.context("an address")?.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    Ok((index, bytes?.try_into().map_err(|_| anyhow::anyhow!("not six bytes"))?))
}
