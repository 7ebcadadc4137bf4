//! Glue of `tmem-device` to the transport.
