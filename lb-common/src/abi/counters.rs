//! What is counted for services and backends.

use bytemuck::{Pod, Zeroable};

/// Counts of one service or backend on one CPU. Bytes are those of IP datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counters {
    /// Packets forwarded from client to backend.
    pub packets: u64,
    /// Bytes forwarded from client to backend.
    pub bytes: u64,
    /// Packets forwarded from backend to client.
    pub reply_packets: u64,
    /// Bytes forwarded from backend to client.
    pub reply_bytes: u64,
    /// Connections whose handshake was completed.
    pub new_flows: u64,
    /// Of a service: connections that backends were chosen for in turn.
    pub turns: u64,
    /// Of a backend: answers to SYNs.
    pub answered: u64,
    /// Of a backend: SYNs that it hadn't answered when they were sent again. It may be the SYNs that weren't worth an
    /// answer.
    pub unanswered: u64,
    /// Of a backend: SYNs that it refused.
    pub refused: u64,
}

impl Counters {
    /// Adds another CPU's counts.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.reply_packets += other.reply_packets;
        self.reply_bytes += other.reply_bytes;
        self.new_flows += other.new_flows;
        self.turns += other.turns;
        self.answered += other.answered;
        self.unanswered += other.unanswered;
        self.refused += other.refused;
    }

    /// Counts what a backend says to a SYN.
    #[inline(always)]
    pub fn count_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Taken => self.answered += 1,
            Answer::Refused => self.refused += 1,
            Answer::None => self.unanswered += 1,
        }
    }

    /// Counts one packet of `bytes` bytes.
    #[inline(always)]
    pub fn count_packet(&mut self, direction: Direction, bytes: u64) {
        match direction {
            Direction::ToBackend => {
                self.packets += 1;
                self.bytes += bytes;
            }
            Direction::ToClient => {
                self.reply_packets += 1;
                self.reply_bytes += bytes;
            }
        }
    }
}

/// What a backend says to a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It takes the connection.
    Taken,
    /// It refuses it.
    Refused,
    /// It hasn't said anything when the SYN is sent again.
    None,
}

/// Which way a packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client.
    ToBackend = 0,
    /// From the backend.
    ToClient = 1,
}

impl Direction {
    /// From [`super::Flow::direction`].
    #[inline(always)]
    pub const fn from_u8(value: u8) -> Self {
        if value == Self::ToBackend as u8 { Self::ToBackend } else { Self::ToClient }
    }
}
