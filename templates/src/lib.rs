//! Every file that smartup writes, as a template with a typed context.
