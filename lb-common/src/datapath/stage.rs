//! The parts that the packet logic has, and what one says to the next.

use bytemuck::Zeroable;

use super::{Action, Packet, Reason, Verdict};
use crate::wire::VlanTags;

/// A part of the packet logic that is a program of its own in the kernel, so that what it takes, in
/// instructions and in stack, is no other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// IPv6: [`super::express`].
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
    /// IPv4 whose tags were taken off: [`super::express`].
    Ipv4 = 6,
    /// Options that have something to change in them: [`super::look_at_options`].
    Options = 7,
    /// The end of what needs more than most: [`super::finish`].
    Finish = 8,
    /// Fragments other than the first: [`super::process_fragment`].
    Fragment = 9,
    /// The same for IPv6.
    FragmentIpv6 = 10,
    /// What belongs to no established flow: [`super::open`].
    Open = 11,
    /// The same for IPv6.
    OpenIpv6 = 12,
    /// Flows whose backend is down, or refuses: [`super::handle_trouble`].
    Trouble = 13,
    /// The same for IPv6.
    TroubleIpv6 = 14,
    /// What opens a flow, once a backend is picked: [`super::record`].
    Record = 15,
    /// The same for IPv6.
    RecordIpv6 = 16,
    /// What can't go the way of most: [`super::read`] and [`super::decide`].
    LookUp = 17,
    /// The same for IPv6.
    LookUpIpv6 = 18,
}

impl Stage {
    /// Every one, in the order of its numbers.
    pub const ALL: [Self; 19] = [
        Self::Ipv6,
        Self::Icmp,
        Self::Icmpv6,
        Self::TooBig,
        Self::TooBigIpv6,
        Self::Tagged,
        Self::Ipv4,
        Self::Options,
        Self::Finish,
        Self::Fragment,
        Self::FragmentIpv6,
        Self::Open,
        Self::OpenIpv6,
        Self::Trouble,
        Self::TroubleIpv6,
        Self::Record,
        Self::RecordIpv6,
        Self::LookUp,
        Self::LookUpIpv6,
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
    /// Number of the part that goes on after [`Stage::Options`]; zero: none.
    pub(super) next: u16,
    /// Whether [`Stage::Open`] needn't look for a handshake, and finds the service in [`super::Scratch`].
    is_new: u32,
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
        Self { tags, longest: 0, next: 0, is_new: 0, verdict: Verdict::zeroed() }
    }

    /// Of a segment of no flow, for [`Stage::Open`].
    #[inline(always)]
    pub(super) fn of_segment(tags: VlanTags, is_new: bool) -> Self {
        Self { is_new: is_new.into(), ..Self::new(tags) }
    }

    /// Whether it is of a segment that is of no handshake either, and whose service is known.
    #[inline(always)]
    pub(super) const fn is_new(&self) -> bool {
        self.is_new != 0
    }
}

impl Decision {
    /// What became of a frame, which may need its tags back or others, or have a SYN to change.
    #[inline(always)]
    pub(super) fn made<P: Packet>(packet: &mut P, verdict: Verdict) -> Self {
        let stage = match verdict.reason.action() {
            Action::Pass if !packet.tags().is_none() => Stage::Finish,
            Action::Transmit if verdict.edits.are_open() => Stage::Options,
            Action::Transmit if !verdict.vlans.is_none() || verdict.edits.have_places() => {
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

    /// The same where that part looks at nothing of a note but the tags.
    #[inline(always)]
    pub(super) fn passing_on<P: Packet>(packet: &mut P, stage: Stage) -> Self {
        packet.leave_tags(packet.tags());
        Self::Left(stage)
    }

    /// A SYN that is another part's once its options are known.
    #[inline(always)]
    pub(super) fn surveying<P: Packet>(
        packet: &mut P,
        next: Stage,
        note: Note,
        transport_offset: usize,
    ) -> Self {
        let mut note = Note { next: next as u16, ..note };
        note.verdict.edits.transport_offset = transport_offset as u16;
        packet.leave(note);
        Self::Left(Stage::Options)
    }

    /// A frame whose datagram may be `longest` bytes long, and isn't.
    #[inline(always)]
    pub(super) fn too_long<P: Packet>(packet: &mut P, stage: Stage, longest: u32) -> Self {
        packet.leave(Note { longest: longest as u16, ..Note::new(packet.tags()) });
        Self::Left(stage)
    }
}
