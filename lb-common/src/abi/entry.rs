//! A value in a map, shared with other CPUs and the controller.

use core::{marker::PhantomData, ptr::NonNull};

use super::{Flow, FlowState, Link, Tick};
use crate::wire::Address;

/// A value in a map. It is read whole, by value, and only single fields are written in place, each
/// of them in one store: another CPU may write at the same moment, and the last one wins.
#[derive(Clone, Copy)]
pub struct Entry<'table, T>(NonNull<T>, PhantomData<&'table T>);

impl<T: Copy> Entry<'_, T> {
    /// Wraps a pointer to a map's value.
    ///
    /// # Safety
    ///
    /// `value` is valid for reads and writes, and aligned, as long as the entry is used.
    #[inline(always)]
    pub unsafe fn new(value: NonNull<T>) -> Self {
        Self(value, PhantomData)
    }

    /// A copy of the value.
    #[inline(always)]
    pub fn read(self) -> T {
        // SAFETY: valid and aligned by the contract of `new`.
        unsafe { self.0.read() }
    }
}

impl<A: Address> Entry<'_, Flow<A>> {
    /// Says that a packet of the flow was seen at `now`, with at most one store a tick, so that a
    /// busy flow's cache line isn't dirtied by every packet.
    #[inline(always)]
    pub fn touch(self, now: Tick) {
        // SAFETY: a field of a value that is valid by the contract of `new`.
        unsafe {
            let last_seen = &raw mut (*self.0.as_ptr()).last_seen;
            if last_seen.read_volatile() != now {
                last_seen.write_volatile(now);
            }
        }
    }

    /// When the flow was opened, in the direction to the backend.
    #[inline(always)]
    pub fn opened(self) -> Tick {
        // SAFETY: a field of a value that is valid by the contract of `new`.
        unsafe { (&raw const (*self.0.as_ptr()).opened).read_volatile() }
    }

    /// Moves the flow to `state`, with `finished` as [`Flow::finished`].
    #[inline(always)]
    pub fn set_state(self, state: FlowState, finished: u8) {
        // SAFETY: fields of a value that is valid by the contract of `new`.
        unsafe {
            (&raw mut (*self.0.as_ptr()).state).write_volatile(state);
            (&raw mut (*self.0.as_ptr()).finished).write_volatile(finished);
        }
    }

    /// Says that the connection begins anew at `now`.
    #[inline(always)]
    pub fn set_opened(self, now: Tick) {
        // SAFETY: a field of a value that is valid by the contract of `new`.
        unsafe { (&raw mut (*self.0.as_ptr()).opened).write_volatile(now) };
    }

    /// Notes, in the direction to the client, the number by which the backend acknowledges the client's FIN:
    /// [`Flow::end_of_client`].
    #[inline(always)]
    pub fn set_end_of_client(self, number: u32) {
        // SAFETY: a field of a value that is valid by the contract of `new`; a tick is such a number.
        unsafe { (&raw mut (*self.0.as_ptr()).opened).cast::<u32>().write_volatile(number) };
    }

    /// Notes where the client is reached, and how long a datagram to it may be, in bytes.
    #[inline(always)]
    pub fn set_link(self, link: Link, maximum_datagram: u16) {
        // SAFETY: fields of a value that is valid by the contract of `new`.
        unsafe {
            (&raw mut (*self.0.as_ptr()).link).write(link);
            (&raw mut (*self.0.as_ptr()).maximum_datagram).write_volatile(maximum_datagram);
        }
    }

    /// Notes that the backend has answered, and what the client must acknowledge to complete the
    /// handshake.
    #[inline(always)]
    pub fn set_answered(self, expected_acknowledgement: u32) {
        // SAFETY: fields of a value that is valid by the contract of `new`.
        unsafe {
            (&raw mut (*self.0.as_ptr()).number).write_volatile(expected_acknowledgement);
            (&raw mut (*self.0.as_ptr()).state).write_volatile(FlowState::ANSWERED);
        }
    }
}
