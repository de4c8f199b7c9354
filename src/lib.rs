//! The invites of a Prosody XMPP server, as a native Lua module.
//!
//! An **invite** lets a stranger register an account (XEP-0445), become a contact of its inviter (XEP-0379)
//! or reset a password. Its **token** is the secret in the link; its **id** is a short public name.
//!
//! # From the wire to the disk
//! ```text
//!  XMPP client, browser, operator
//!      │
//!  Prosody and its invites_* modules
//!      │  Lua API, events
//!  lua/mod_invites   the shim: options, events, exported functions; no rule, no SQL
//!      │  require "prosody_invites"
//!  src/lua           the only code that knows mlua: values in, values out, errors mapped
//!      ▼
//!  src/operator      commands of prosodyctl and the shell: parsed, carried out, put into words
//!      ▼
//!  src/invites       the use cases, each once: what is read, which rule decides, what is changed
//!      │       ╲
//!      │        src   the domain: Invite, Token, lifecycle; pure, `now` is an argument
//!      ▼
//!  src/store         rows in a transaction: memory, sqlite, postgres; src/lua/prosody.rs besides
//! ```
//! Everything below `src/lua` builds and tests without Lua. Why it is so is in docs/design/architecture.md. Read
//! [`lifecycle`], [`redemption`] and [`policy`] first for the rules, then [`invites`] for how an invite is made, found and
//! redeemed, [`attempts`] for what becomes of a registration under way, [`store`] for what a store must do, and
//! [`store::sqlite`] for how it does; [`transfer`] takes invites from one store to another.

pub mod attempts;
pub mod bad_tokens;
pub mod check;
pub mod clock;
pub mod duration;
pub mod ending;
pub mod error;
pub mod invite;
pub mod invites;
pub mod lifecycle;
pub mod lineage;
pub mod listing;
#[cfg(feature = "lua")]
mod lua;
pub mod operator;
pub mod pasted;
pub mod policy;
pub mod redemption;
mod signals;
pub mod store;
pub mod token;
pub mod transfer;
pub mod uri;
pub mod value;
pub mod watch;
