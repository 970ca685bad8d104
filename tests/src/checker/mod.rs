//! The proof of the promise that nothing acknowledged is ever lost. One *round* is: many clients over all transports write
//! numbered messages, repeat them, stop replies and come back ([`workload`]), while processes and networks fail by a seed
//! ([`faults`]) under a product that is set up in one of several ways ([`topology`]); then everything is mended and comes to rest, and
//! what every client saw ([`record`]) and what is stored ([`stored`], by the calls of a healthy core and from the database itself)
//! goes to [`proof`], which is pure: a list of violations, each with its evidence.
//!
//! That the proof finds the opposite is shown by [`faulty`]: stores and buses that lie.

pub mod faults;
pub mod faulty;
pub mod plan;
pub mod proof;
pub mod record;
pub mod round;
pub mod stored;
pub mod topology;
pub mod workload;
