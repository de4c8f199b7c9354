//! What an operator types: understood ([`args`]), carried out ([`run`], in [`step`]s) and put into words ([`text`], [`tree`]).
//!
//! A command is carried out in [`Step`](step::Step)s. A step has effects (text, events) and ends with an exit code, or with a
//! question that only the caller can answer: what an account is, what the handlers of an event make of an invite. So nothing
//! here calls Lua or waits for it, and the commands run in unit tests as they run in Prosody.

pub mod args;
mod changing;
pub mod health;
mod looking;
mod making;
pub mod moving;
mod progress;
pub mod run;
pub mod shell;
pub mod stats;
pub mod step;
#[cfg(test)]
mod tests;
pub mod text;
pub mod tree;
mod voice;
