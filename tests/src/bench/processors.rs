//! On which processors a [`Bed`] works, and how long they take.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::bed::Bed;

/// The processor of the balancer, and that of everything else.
const BALANCERS: usize = 0;
pub(super) const OTHERS: usize = 1;

impl Bed {
    /// Has the kernel handle what the interfaces receive in threads, which can be pinned and counted, or as usual.
    pub(super) fn thread_interfaces(&self, threaded: bool) -> Result<()> {
        for (namespace, interface) in self.ends() {
            let number = u8::from(threaded);
            let write = format!("echo {number} > /sys/class/net/{interface}/threaded");
            // Only with a view of /sys of its own.
            xtask::netns::run("ip", &["netns", "exec", namespace.name(), "sh", "-c", &write])?;
        }
        Ok(())
    }

    /// Pins what the balancer consists of to one processor, and all else to the other.
    pub(super) fn pin(&self) -> Result<()> {
        for pid in self.balancers()? {
            set_processor(pid, BALANCERS)?;
        }
        let mut others = kernel_threads(&["napi/client0", "napi/backend0"])?;
        for pid in self.backend.processes() {
            others.push(pid);
        }
        for pid in others {
            set_processor(pid, OTHERS)?;
        }
        Ok(())
    }

    /// Leaves one processor alone: all processes run on the other one. Returns that.
    pub(super) fn gather(&self) -> Result<usize> {
        for pid in self.balancer.processes().into_iter().chain(self.backend.processes()) {
            set_processor(pid, OTHERS)?;
        }
        Ok(OTHERS)
    }

    /// Lets everything run anywhere.
    pub(super) fn unpin(&self) -> Result<()> {
        let own = self.balancer.processes().into_iter().chain(self.backend.processes());
        for pid in own {
            let mut all = CpuSet::new();
            for processor in [BALANCERS, OTHERS] {
                all.set(processor)?;
            }
            sched_setaffinity(pid, &all)?;
        }
        Ok(())
    }

    /// Processor time that the balancer has taken, in nanoseconds: its processes and its interfaces' threads; or the
    /// processors of the machine that it is.
    pub(super) fn processor_time(&self) -> Result<u64> {
        if let Some(guest) = &self.guest {
            return guest.processor_time();
        }
        let mut sum = 0;
        for pid in self.balancers()? {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
            for task in tasks.flatten() {
                sum += time_taken(&task.path())?;
            }
        }
        Ok(sum)
    }

    fn balancers(&self) -> Result<Vec<Pid>> {
        let mut all = kernel_threads(&["napi/lb0", "napi/lb1"])?;
        ensure!(all.len() == 2, "{} threads of the balancer's interfaces", all.len());
        all.extend(self.balancer.processes());
        Ok(all)
    }
}

/// Processor time that a thread has taken, which `/proc` shows there, in nanoseconds.
pub(super) fn time_taken(task: &Path) -> Result<u64> {
    let text = fs::read_to_string(task.join("schedstat"))?;
    Ok(text.split(' ').next().context("a number")?.parse()?)
}

fn set_processor(pid: Pid, processor: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(processor)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let id: i32 = task.file_name().to_str().context("a number")?.parse()?;
        sched_setaffinity(Pid::from_raw(id), &only)?;
    }
    Ok(())
}

/// Threads of the kernel whose names begin so.
fn kernel_threads(beginnings: &[&str]) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if beginnings.iter().any(|beginning| name.starts_with(beginning)) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}
