//! What the project's commands and its tests share: network namespaces and a small web server.

pub mod netns;
pub mod web;
