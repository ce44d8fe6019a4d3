//! The drill's eyes, for tests of what they see.

#![allow(dead_code)] // What only the drill itself needs.

#[path = "../drill/gather.rs"]
pub mod gather;
#[path = "../drill/oracles.rs"]
pub mod oracles;
#[path = "../drill/story.rs"]
pub mod story;
