//! What benches measure with: the product and its reference as real processes ([`product`], [`echo`], both a [`peer`]), a lean load generator
//! ([`load`]), the machine's own figures ([`machine`]), what is asked of a store alone ([`stores`]), and how figures are compared and shown ([`report`]).

pub(crate) mod echo;
pub(crate) mod frame;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod options;
pub(crate) mod peer;
pub(crate) mod product;
pub(crate) mod repeat;
pub(crate) mod report;
pub(crate) mod sample;
pub(crate) mod stores;
