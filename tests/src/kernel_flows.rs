//! The flows that the loaded program has.

use anyhow::Result;
use lb_common::{datapath::Table, wire::Address};
use lb_userspace::dataplane::{FamilyMaps, Shortcuts};

use crate::{
    kernel::Kernel,
    memory::{Recorded, Records, earlier},
};

impl Kernel {
    /// Forgets all flows.
    ///
    /// # Errors
    ///
    /// The maps can't be changed.
    pub fn forget_flows(&mut self) -> Result<()> {
        self.remove_entries()?;
        self.loaded.maps.shortcuts.clear_through();
        Ok(())
    }

    /// Erases the traces by direct return, which [`Self::forget_flows`] leaves.
    pub fn forget_traces(&self) {
        self.loaded.maps.shortcuts.traces.clear();
    }

    /// Removes the entries of all flows, as nobody does who knows of their traces.
    ///
    /// # Errors
    ///
    /// The maps can't be changed.
    pub fn remove_entries(&mut self) -> Result<()> {
        let maps = &mut self.loaded.maps;
        for table in [Table::Established, Table::Embryonic] {
            clear_flows(&mut maps.ipv4, table)?;
            clear_flows(&mut maps.ipv6, table)?;
        }
        Ok(())
    }

    /// Removes the entries of established flows as the sweep does.
    ///
    /// # Errors
    ///
    /// The maps can't be read.
    pub fn sweep_flows(&mut self) -> Result<()> {
        let maps = &mut self.loaded.maps;
        sweep(&mut maps.ipv4, &maps.shortcuts)?;
        sweep(&mut maps.ipv6, &maps.shortcuts)
    }

    /// Makes established flows older by so many ticks.
    ///
    /// # Errors
    ///
    /// The maps can't be changed.
    pub fn age_flows(&mut self, ticks: u32) -> Result<()> {
        age(&mut self.loaded.maps.ipv4, ticks)?;
        age(&mut self.loaded.maps.ipv6, ticks)
    }

    /// The entries of a table.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn flows(&self, table: Table) -> Result<Records> {
        let mut records = Records::new();
        let maps = &self.loaded.maps;
        maps.ipv4.for_each(table, |key, flow| {
            records.insert(bytemuck::bytes_of(key).to_vec(), Recorded::new(flow));
        })?;
        maps.ipv6.for_each(table, |key, flow| {
            records.insert(bytemuck::bytes_of(key).to_vec(), Recorded::new(flow));
        })?;
        Ok(records)
    }

    /// How many entries a table has, of both families.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    pub fn entries(&self, table: Table) -> Result<u32> {
        let maps = &self.loaded.maps;
        Ok(maps.ipv4.usage(table)?.0 + maps.ipv6.usage(table)?.0)
    }
}

fn age<A: Address>(maps: &mut FamilyMaps<A>, ticks: u32) -> Result<()> {
    let mut flows = Vec::new();
    maps.for_each(Table::Established, |key, flow| flows.push((*key, *flow)))?;
    for (key, mut flow) in flows {
        flow.opened = earlier(flow.opened, ticks);
        flow.last_seen = earlier(flow.last_seen, ticks);
        maps.flows_mut(Table::Established).insert(key, flow, 0)?;
    }
    Ok(())
}

fn clear_flows<A: Address>(maps: &mut FamilyMaps<A>, table: Table) -> Result<()> {
    let mut keys = Vec::new();
    maps.for_each(table, |key, _| keys.push(*key))?;
    for key in keys {
        maps.flows_mut(table).remove(&key)?;
    }
    Ok(())
}

fn sweep<A: Address>(maps: &mut FamilyMaps<A>, shortcuts: &Shortcuts) -> Result<()> {
    let mut keys = Vec::new();
    maps.for_each(Table::Established, |key, _| keys.push(*key))?;
    for key in keys {
        maps.remove_flow(Table::Established, &key, shortcuts);
    }
    Ok(())
}
