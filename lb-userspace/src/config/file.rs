//! The shape of `lb.toml`: everything that it may say, also what this version can't do yet, so that
//! such a key is told apart from a misspelt one.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::LogFormat;
use crate::dataplane::ModeChoice;

pub(super) type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) interfaces: Vec<Text>,
    #[serde(default)]
    pub(super) xdp_mode: ModeChoice,
    pub(super) admin: Option<Text>,
    pub(super) socket: Option<Text>,
    pub(super) pin_path: Option<Text>,
    pub(super) user: Option<Text>,
    pub(super) log: Option<Text>,
    #[serde(default)]
    pub(super) log_format: LogFormat,
    pub(super) hash_seed: Option<Spanned<i64>>,
    pub(super) watch: Option<bool>,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) dns: Dns,
    #[serde(default)]
    pub(super) nat: Nat,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) service: Vec<Spanned<Service>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) flows: Option<Spanned<i64>>,
    pub(super) embryonic: Option<Spanned<i64>>,
    pub(super) clients: Option<Spanned<i64>>,
    pub(super) syn_rate_per_source: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dns {
    #[serde(default)]
    pub(super) servers: Vec<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nat {
    #[serde(default)]
    pub(super) addresses: Vec<Text>,
    pub(super) ports: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) syn: Option<Text>,
    pub(super) established: Option<Text>,
    pub(super) closing: Option<Text>,
    pub(super) udp: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Text,
    pub(super) bind: Spanned<Vec<Text>>,
    pub(super) protocol: Option<Text>,
    pub(super) forwarding: Option<Text>,
    pub(super) balance: Option<Text>,
    pub(super) affinity: Option<Text>,
    pub(super) on_down: Option<Text>,
    pub(super) on_all_down: Option<Text>,
    pub(super) mss: Option<Spanned<i64>>,
    pub(super) slow_start: Option<Text>,
    pub(super) max_load: Option<Spanned<f64>>,
    #[serde(default)]
    pub(super) allow: Vec<Text>,
    #[serde(default)]
    pub(super) deny: Vec<Text>,
    pub(super) timeouts: Option<Timeouts>,
    pub(super) check: Option<Check>,
    #[serde(default)]
    pub(super) backend: Vec<Spanned<Backend>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    #[serde(rename = "type")]
    pub(super) kind: Option<Text>,
    pub(super) track: Option<Text>,
    pub(super) method: Option<Text>,
    pub(super) path: Option<Text>,
    pub(super) http_version: Option<Text>,
    pub(super) host: Option<Text>,
    #[serde(default)]
    pub(super) headers: BTreeMap<Spanned<String>, Text>,
    pub(super) body: Option<Text>,
    pub(super) send: Option<Text>,
    pub(super) expect: Option<Text>,
    pub(super) expect_header: Option<Text>,
    pub(super) expect_body: Option<Text>,
    pub(super) drain_on: Option<Text>,
    pub(super) interval: Option<Text>,
    pub(super) fast_interval: Option<Text>,
    pub(super) down_interval: Option<Text>,
    pub(super) timeout: Option<Text>,
    pub(super) rise: Option<Spanned<i64>>,
    pub(super) fall: Option<Spanned<i64>>,
    pub(super) port: Option<Spanned<i64>>,
    pub(super) verify: Option<Spanned<bool>>,
    pub(super) ca_file: Option<Text>,
    pub(super) certificate: Option<Text>,
    pub(super) certificate_key: Option<Text>,
    pub(super) observe: Option<Text>,
    pub(super) observe_failures: Option<Spanned<i64>>,
    pub(super) observe_window: Option<Text>,
    pub(super) agent_port: Option<Spanned<i64>>,
    pub(super) agent_interval: Option<Text>,
    pub(super) agent_send: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    pub(super) name: Text,
    pub(super) address: Text,
    pub(super) weight: Option<Spanned<i64>>,
    pub(super) backup: Option<bool>,
    pub(super) check_address: Option<Text>,
    pub(super) check_port: Option<Spanned<i64>>,
    pub(super) track: Option<Text>,
}
