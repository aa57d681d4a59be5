//! The AF_XDP backend on a real veth between two namespaces. Needs root.

mod bed;
mod frame;
mod life;
mod queue;
mod reasons;
mod steering;
mod tcp;
