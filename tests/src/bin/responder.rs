//! Answers UDP datagrams: `responder NAME ADDRESS:PORT...` sends back its name, who it saw asking, and
//! what was asked.
//!
//! Says `ready` when it is, and runs until it is ended.

use std::{env, io::Error, net::UdpSocket, thread};

const LONGEST_DATAGRAM: usize = 65_535;

fn main() -> Result<(), Error> {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().ok_or_else(|| Error::other("no name"))?;
    let sockets: Vec<UdpSocket> = arguments.map(UdpSocket::bind).collect::<Result<_, _>>()?;
    println!("ready");
    let answering = sockets.into_iter().map(|socket| {
        let name = name.clone();
        thread::spawn(move || answer(&name, &socket))
    });
    for thread in answering.collect::<Vec<_>>() {
        thread.join().map_err(|_| Error::other("a thread panicked"))??;
    }
    Ok(())
}

fn answer(name: &str, socket: &UdpSocket) -> Result<(), Error> {
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(question) => question,
            // An ICMP error about an earlier answer.
            Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => continue,
            Err(error) => return Err(error),
        };
        let answer = [format!("{name} {from} ").as_bytes(), &buffer[..length]].concat();
        socket.send_to(&answer, from)?;
    }
}
