//! Puts right how many connections backends have under way: packets count them, but not those whose entries were evicted
//! or removed.

use std::collections::BTreeMap;

use lb_common::abi::{CHECK_SERVICE, Direction, Flow, maps};

use crate::dataplane::{DataplaneError, Maps};

/// What is counted in a round.
pub(super) struct Loads {
    /// By backend and by service: what packets had counted before the round, and what was found in it.
    counted: [BTreeMap<u32, (i64, i64)>; 2],
}

impl Loads {
    /// Begins a round, for those backends and services.
    pub(super) fn begin(
        maps: &Maps,
        backends: impl Iterator<Item = u32>,
        services: impl Iterator<Item = u32>,
    ) -> Result<Self, DataplaneError> {
        let backends = backends.map(|index| {
            let load = maps.loads.get(&index, 0).map_err(DataplaneError::map(maps::LOADS))?;
            Ok((index, (load, 0)))
        });
        let services = services.map(|index| {
            let load = maps.service_loads.get(&index, 0);
            Ok((index, (load.map_err(DataplaneError::map(maps::SERVICE_LOADS))?, 0)))
        });
        let backends = backends.collect::<Result<_, DataplaneError>>()?;
        Ok(Self { counted: [backends, services.collect::<Result<_, DataplaneError>>()?] })
    }

    /// Counts a flow that stays.
    pub(super) fn see<A>(&mut self, flow: &Flow<A>)
    where
        A: lb_common::wire::Address,
    {
        let is_to_backend = flow.direction == Direction::ToBackend as u8;
        if !is_to_backend || flow.service == CHECK_SERVICE || !flow.is_under_way() {
            return;
        }
        let [backends, services] = &mut self.counted;
        for (counted, index) in [(backends, flow.backend), (services, flow.service)] {
            if let Some((_, found)) = counted.get_mut(&index) {
                *found += 1;
            }
        }
    }

    /// Corrects what packets count, by what it is beyond what changed meanwhile.
    pub(super) fn end(self, maps: &mut Maps) -> Result<(), DataplaneError> {
        let [backends, services] = self.counted;
        for (map, name, counted) in [
            (&mut maps.loads, maps::LOADS, backends),
            (&mut maps.service_loads, maps::SERVICE_LOADS, services),
        ] {
            for (index, (before, found)) in counted {
                let now = map.get(&index, 0).map_err(DataplaneError::map(name))?;
                let error = correction(before, now, found);
                if error != 0 {
                    map.set(index, now + error, 0).map_err(DataplaneError::map(name))?;
                }
            }
        }
        Ok(())
    }
}

/// How far what was found is from anything between what was counted before and after.
fn correction(before: i64, after: i64, found: i64) -> i64 {
    found - found.clamp(before.min(after), before.max(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_during_a_round_is_no_error() {
        assert_eq!(correction(10, 14, 12), 0);
        assert_eq!(correction(14, 10, 12), 0);
        assert_eq!(correction(10, 10, 7), -3);
        assert_eq!(correction(-2, -1, 4), 5);
    }
}
