//! The maintenance operator: its image, its manifest, and what runs in its pods (controller, node agent, deployment job).

pub mod image;
