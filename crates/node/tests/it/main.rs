//! Tests of the process as a library, on real databases and real stores. One binary, so that it links once.

mod adopt;
mod capture;
mod cli;
#[cfg(target_os = "linux")]
mod cluster;
mod coming;
mod damage;
mod doctor;
mod drill;
mod durability;
mod events;
mod follow;
mod foreign;
mod forward;
mod history;
mod history_builder;
mod kubernetes_server;
mod lease;
mod lease_places;
mod lease_servers;
mod lease_wire;
#[cfg(target_os = "linux")]
mod leases;
#[cfg(target_os = "linux")]
mod limits;
mod litefs;
mod litestream;
mod log_end;
mod many;
#[cfg(target_os = "linux")]
mod mount;
mod mount_cost;
#[cfg(target_os = "linux")]
mod mount_durability;
#[cfg(target_os = "linux")]
mod mount_forward;
#[cfg(target_os = "linux")]
mod mount_node;
#[cfg(target_os = "linux")]
mod mount_user;
#[cfg(target_os = "linux")]
mod node_config;
mod operating;
mod parked;
mod pins;
mod plan;
mod probe;
mod program;
mod promote;
mod proxy;
#[cfg(target_os = "linux")]
mod proxy_durability;
mod prune;
mod push;
#[cfg(target_os = "linux")]
mod push_cluster;
mod readme;
mod restore;
mod resume;
#[allow(dead_code, reason = "not every server is needed here")]
#[path = "../../../store/tests/it/servers.rs"]
mod servers;
mod stream;
mod stream_files;
mod stream_merged;
mod verify;
#[cfg(target_os = "linux")]
mod wait_http;
