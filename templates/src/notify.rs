//! What somebody is notified of: the body of a request, by a template of the user's own.

use std::io::Write;

use serde::Serialize;

use crate::RenderError;

/// What happened to a node.
#[derive(Debug, Serialize)]
pub struct Notification<'a> {
    /// The node's name.
    pub node: &'a str,
    /// started, done or failed.
    pub event: &'a str,
    /// For people.
    pub message: &'a str,
    /// The transaction's name.
    pub transaction: &'a str,
}

impl Notification<'_> {
    /// The body, by this template. What is filled in is escaped as within a text of JSON; `| safe` leaves it as it is.
    ///
    /// # Errors
    /// A mistake in the template.
    pub fn render(&self, template: &str) -> Result<String, RenderError> {
        let name = "notify.template";
        let fail = |e| RenderError { name, source: Box::new(e) };
        let mut tera = tera::Tera::default();
        tera.autoescape_on([".json"]);
        tera.set_escape_fn(escape);
        tera.add_raw_template("notify.json", template).map_err(fail)?;
        let context = tera::Context::from_serialize(self).map_err(fail)?;
        tera.render("notify.json", &context).map_err(fail)
    }
}

/// As it stands between the quotes of a JSON text.
fn escape(text: &str, out: &mut dyn Write) -> std::io::Result<()> {
    let quoted = serde_json::to_string(text)?;
    out.write_all(quoted.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_does_not_break_the_json_around_it() {
        let told = Notification { node: "h1", event: "failed", message: "\"web\"\nis kept", transaction: "00" };
        let body = told.render(r#"{"text": "{{ node }}: {{ message }}", "what": "{{ event }} {{ transaction }}"}"#).unwrap();
        assert_eq!(body, r#"{"text": "h1: \"web\"\nis kept", "what": "failed 00"}"#);
        assert_eq!(told.render("{{ message | safe }}").unwrap(), "\"web\"\nis kept");
        assert!(told.render("{{ nodes }}").is_err() && told.render("{{ node").is_err());
    }
}
