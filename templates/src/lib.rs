//! Every file that smartup writes, as a template with a typed context.
//!
//! One module for each part of the product, one context struct for each template. Nothing in a template escapes: every
//! field's type must be one that cannot hold what would break the file (see the `cluster` crate).

use serde::Serialize;

pub mod k3s;
pub mod keepalived;
pub mod kernel;
pub mod notify;
pub mod operator;

/// A template could not be rendered: a mistake in the template or its context, never in the user's input.
#[derive(Debug, thiserror::Error)]
#[error("cannot render the template {name}")]
pub struct RenderError {
    name: &'static str,
    #[source]
    source: Box<tera::Error>,
}

/// Renders one template with its context.
fn render(name: &'static str, text: &str, context: &impl Serialize) -> Result<String, RenderError> {
    let fail = |e| RenderError { name, source: Box::new(e) };
    let mut tera = tera::Tera::default();
    tera.autoescape_on(Vec::<&str>::new());
    tera.add_raw_template(name, text).map_err(fail)?;
    let context = tera::Context::from_serialize(context).map_err(fail)?;
    tera.render(name, &context).map_err(fail)
}
