//! The drill's eyes and its network, for tests of both.

#![allow(dead_code)] // What only the drill itself needs.

#[path = "../drill/gather.rs"]
pub mod gather;
#[path = "../drill/keys.rs"]
pub mod keys;
#[path = "../drill/oracles.rs"]
pub mod oracles;
#[path = "../drill/proxy.rs"]
pub mod proxy;
#[path = "../drill/story.rs"]
pub mod story;
