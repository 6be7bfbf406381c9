//! Every architectural variation as data.
