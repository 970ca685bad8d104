//! The state of a session: what its entries fold into.
