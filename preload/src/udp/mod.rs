//! UDP on an accelerated socket: receive and send, over the endpoint and its shadow.

pub mod asked;
pub mod cmsg;
mod gso;
pub mod receive;
mod route;
pub mod send;
