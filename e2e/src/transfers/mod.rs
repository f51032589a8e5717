//! A server of token transfers, for tests and benchmarks: real and generated ledgers, a network that
//! goes on, errors where they are wanted. Start with [`Server::start`].

mod content;
mod listed;
pub mod pipeline;
mod serve;

/// What the protocol's files describe, generated when this crate is built.
#[allow(
    clippy::pedantic,
    clippy::module_inception,
    missing_docs,
    reason = "generated"
)]
pub mod protocol {
    /// Assets.
    pub mod asset {
        include!(concat!(env!("OUT_DIR"), "/asset.rs"));
    }
    /// Events.
    pub mod token_transfer {
        include!(concat!(env!("OUT_DIR"), "/token_transfer.rs"));
    }
    /// Requests.
    pub mod token_transfer_service {
        include!(concat!(env!("OUT_DIR"), "/token_transfer_service.rs"));
    }
    /// The descriptors themselves.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/transfers.binpb"));
}

pub use self::{
    content::{Generated, Ledgers, Real},
    listed::Listed,
    serve::{Fault, Server, Settings, What},
};
