//! Servers of Debian with a configuration for the test bed. Under construction.
