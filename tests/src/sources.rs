//! Reads the repository's own text. Under construction.
