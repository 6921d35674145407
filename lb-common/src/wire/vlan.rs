//! VLAN tags (IEEE 802.1Q, and 802.1ad, "QinQ").

use bytemuck::{Pod, Zeroable};

use super::{EtherType, NetworkU16};

/// A tag as it stands in a frame, behind the hardware addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VlanTag {
    /// What tells that it is a tag.
    pub ether_type: EtherType,
    /// Priority (3 bits), drop eligibility (1 bit) and the VLAN's number (12 bits).
    pub control: NetworkU16,
}

/// The tags of a frame, the outer one first; zeros where there are fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VlanTags(pub [VlanTag; 2]);

/// A VLAN by its number and by whether its tags are service tags; zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct Vlan(u16);

/// The VLAN that a link is, or the one within another, the outer one first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Vlans(pub [Vlan; 2]);

const NUMBER: u16 = 0x0fff;
const IS_SERVICE: u16 = 0x1000;
const PRIORITY: u16 = 0xe000;

impl VlanTag {
    /// Bytes that it takes.
    pub const LENGTH: usize = 4;

    /// No tag.
    pub const NONE: Self = Self { ether_type: EtherType::ZERO, control: NetworkU16::new(0) };

    /// Whether it is there at all.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.ether_type.is_zero()
    }

    /// The VLAN. A tag with number 0 names none: it only carries a priority.
    #[inline(always)]
    const fn vlan(self) -> Vlan {
        let number = self.control.get() & NUMBER;
        if number == 0 || self.is_none() {
            return Vlan::NONE;
        }
        Vlan::new(number, self.ether_type.is_service_vlan())
    }
}

impl VlanTags {
    /// No tags.
    pub const NONE: Self = Self([VlanTag::NONE; 2]);

    /// Whether there are none.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0[0].is_none()
    }

    /// The VLANs that they name.
    #[inline(always)]
    pub const fn vlans(self) -> Vlans {
        let [outer, inner] = [self.0[0].vlan(), self.0[1].vlan()];
        Vlans(if outer.is_none() { [inner, Vlan::NONE] } else { [outer, inner] })
    }
}

impl Vlan {
    /// None.
    pub const NONE: Self = Self(0);

    /// The VLAN of a number, 1 to 4095.
    #[inline(always)]
    pub const fn new(number: u16, is_service: bool) -> Self {
        Self((number & NUMBER) | if is_service { IS_SERVICE } else { 0 })
    }

    /// Whether this is [`Self::NONE`].
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == Self::NONE.0
    }

    /// A number that no other VLAN has.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 as u32
    }

    /// The tag of a frame in it, of the priority that `like` has.
    #[inline(always)]
    const fn tag(self, like: VlanTag) -> VlanTag {
        let is_service = self.0 & IS_SERVICE != 0;
        VlanTag {
            ether_type: if is_service { EtherType::SERVICE_VLAN } else { EtherType::VLAN },
            control: NetworkU16::new((self.0 & NUMBER) | (like.control.get() & PRIORITY)),
        }
    }
}

impl Vlans {
    /// None: frames without tags.
    pub const NONE: Self = Self([Vlan::NONE; 2]);

    /// Whether this is [`Self::NONE`].
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0[0].is_none()
    }

    /// The tags of a frame in them, of the priority that one with `tags` had.
    #[inline(always)]
    pub const fn tags(self, tags: VlanTags) -> VlanTags {
        let like = tags.0[0];
        let [outer, inner] = self.0;
        let mut new = VlanTags::NONE;
        if !outer.is_none() {
            new.0[0] = outer.tag(like);
        }
        if !inner.is_none() {
            new.0[1] = inner.tag(like);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn tag(ether_type: EtherType, control: u16) -> VlanTag {
        VlanTag { ether_type, control: NetworkU16::new(control) }
    }

    #[test]
    fn tags_name_vlans_and_keep_the_priority() {
        let none = VlanTag::NONE;
        let inner = tag(EtherType::VLAN, 0x6007);
        let outer = tag(EtherType::SERVICE_VLAN, 0xb064);
        let priority = tag(EtherType::VLAN, 0xa000);
        let both = VlanTags([outer, inner]).vlans();
        assert_eq!(both, Vlans([Vlan::new(100, true), Vlan::new(7, false)]));
        assert_eq!(VlanTags([inner, none]).vlans(), Vlans([Vlan::new(7, false), Vlan::NONE]));
        assert_eq!(VlanTags([priority, none]).vlans(), Vlans::NONE);
        let behind = VlanTags([priority, inner]).vlans();
        assert_eq!(behind, Vlans([Vlan::new(7, false), Vlan::NONE]));
        assert_eq!(VlanTags::NONE.vlans(), Vlans::NONE);

        let service = tag(EtherType::SERVICE_VLAN, 0xa064);
        assert_eq!(
            both.tags(VlanTags([priority, none])).0,
            [service, tag(EtherType::VLAN, 0xa007)]
        );
        assert_eq!(behind.tags(VlanTags::NONE).0, [tag(EtherType::VLAN, 7), none]);
        assert_eq!(Vlans::NONE.tags(VlanTags([priority, none])), VlanTags::NONE);
    }
}
