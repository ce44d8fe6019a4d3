//! The promises of the program, each kept against a real PostgreSQL over real sockets.
//!
//! One test binary, so that all tests share one server; each has a database of its own. They wait for facts and never sleep.

#![allow(clippy::unwrap_used)]

mod altered;
mod asking;
mod commands;
mod crowds;
mod cuts;
mod delivery;
mod documents;
mod doorbell;
mod drill;
mod dumps;
mod epochs;
mod filters;
mod gateways;
mod harness;
mod heavy;
mod hostile;
mod listen;
mod locks;
mod oracles;
mod order;
mod page;
mod plain;
mod poolers;
mod properties;
mod resume;
mod retention;
mod selections;
mod settings;
mod snapshots;
mod statements;
mod stopping;
mod strangers;
mod subscriptions;
mod switch_status;
mod tail;
mod trouble;
mod unreadable;
mod values;
mod wire;
