//! Tests of the control-plane table.
