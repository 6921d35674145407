//! The parts that the packet logic has, and what one says to the next.

use bytemuck::Zeroable;

use super::{Action, Packet, Reason, Verdict};
use crate::wire::VlanTags;

/// A part of the packet logic that is a program of its own in the kernel, so that what it takes, in
/// instructions and in stack, is no other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// IPv6: [`super::read`] and [`super::decide`].
    Ipv6 = 0,
    /// ICMP: [`super::process_icmp`].
    Icmp = 1,
    /// The same for IPv6.
    Icmpv6 = 2,
    /// What is too long: [`super::answer_too_big`].
    TooBig = 3,
    /// The same for IPv6.
    TooBigIpv6 = 4,
    /// VLAN tags: [`super::process_tagged`].
    Tagged = 5,
    /// IPv4 whose tags were taken off: [`super::process_ipv4`].
    Ipv4 = 6,
    /// A SYN that may say too much: [`super::look_at_syn`].
    Syn = 7,
    /// The end of what needs more than most: [`super::finish`].
    Finish = 8,
    /// Fragments other than the first: [`super::process_fragment`].
    Fragment = 9,
    /// The same for IPv6.
    FragmentIpv6 = 10,
}

impl Stage {
    /// Every one, in the order of its numbers.
    pub const ALL: [Self; 11] = [
        Self::Ipv6,
        Self::Icmp,
        Self::Icmpv6,
        Self::TooBig,
        Self::TooBigIpv6,
        Self::Tagged,
        Self::Ipv4,
        Self::Syn,
        Self::Finish,
        Self::Fragment,
        Self::FragmentIpv6,
    ];
}

/// What a part has to know of a frame beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Note {
    /// VLAN tags that were taken off.
    pub tags: VlanTags,
    /// How long a datagram may be, in bytes: for [`Stage::TooBig`] and its like.
    pub longest: u16,
    reserved: u16,
    /// What became of it: for [`Stage::Finish`].
    pub verdict: Verdict,
}

/// What a part says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// What became of it.
    Made(Verdict),
    /// It is left to another part, with a note.
    Left(Stage),
}

impl Note {
    #[inline(always)]
    pub(super) fn new(tags: VlanTags) -> Self {
        Self { tags, longest: 0, reserved: 0, verdict: Verdict::zeroed() }
    }
}

impl Decision {
    /// What became of a frame, which may need its tags back or others, or have a SYN to change.
    #[inline(always)]
    pub(super) fn made<P: Packet>(packet: &mut P, verdict: Verdict) -> Self {
        let stage = match verdict.reason.action() {
            Action::Pass if !packet.tags().is_none() => Stage::Finish,
            Action::Transmit if verdict.clamp.is_open() => Stage::Syn,
            Action::Transmit if !verdict.vlans.is_none() || verdict.clamp.place != 0 => {
                Stage::Finish
            }
            Action::Pass | Action::Drop | Action::Transmit => return Self::Made(verdict),
        };
        packet.leave(Note { verdict, ..Note::new(packet.tags()) });
        Self::Left(stage)
    }

    /// A frame that isn't transmitted.
    #[inline(always)]
    pub(super) fn refusing<P: Packet>(packet: &mut P, reason: Reason) -> Self {
        Self::made(packet, Verdict::refusing(reason))
    }

    /// A frame that is another part's as it is.
    #[inline(always)]
    pub(super) fn leaving<P: Packet>(packet: &mut P, stage: Stage) -> Self {
        packet.leave(Note::new(packet.tags()));
        Self::Left(stage)
    }

    /// A frame whose datagram may be `longest` bytes long, and isn't.
    #[inline(always)]
    pub(super) fn too_long<P: Packet>(packet: &mut P, stage: Stage, longest: u32) -> Self {
        packet.leave(Note { longest: longest as u16, ..Note::new(packet.tags()) });
        Self::Left(stage)
    }
}
