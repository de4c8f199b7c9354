//! What an operator types, and what it prints.

pub mod args;
pub mod stats;
pub mod text;
pub mod tree;
