//! Lists of names in pages: `n`, `last` and `Link` (OCI distribution-spec, "Listing Tags"; RFC 5988).

use std::fmt::Display;

use hyper::header::{self, HeaderValue};
use serde_json::{Map, Value};
use url::form_urlencoded::Serializer;

use crate::{
    answer::{Response, Source},
    body::Body,
    error::Error,
    shim::parameter,
};

/// Which part of a list a request asks for.
pub struct Page {
    /// How many names it has at most.
    pub limit: usize,
    /// The name that it begins behind; empty for the beginning of the list.
    pub last: String,
    /// `?ns=`, without which the next page would be another registry's.
    namespace: Option<String>,
}

impl Page {
    /// Reads the query of a request. No page has more than `max` names, whoever wants more is
    /// told where the next one is.
    ///
    /// # Errors
    /// [`Error::Page`]
    pub fn of(query: &str, max: usize) -> Result<Self, Error> {
        let limit = match parameter(query, "n") {
            Some(n) if n.is_empty() || !n.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(Error::Page(n));
            }
            // What does not fit is more than the most.
            Some(n) => n.parse().unwrap_or(max).min(max),
            None => max,
        };
        let last = parameter(query, "last").unwrap_or_default();
        Ok(Self { limit, last, namespace: parameter(query, "ns") })
    }

    /// The answer with the list `key` of `names`, among what else is in `body`. The page after it
    /// is at `path` if this `is_cut`.
    pub fn answer<T: Display>(
        &self,
        path: &str,
        mut body: Map<String, Value>,
        key: &str,
        (names, is_cut): (&[T], bool),
        source: Source,
    ) -> Response {
        body.insert(key.to_owned(), names.iter().map(T::to_string).collect());
        let mut response = Response::new(Body::Memory(Value::Object(body).to_string().into()));
        response.source = Some(source);
        let headers = &mut response.headers;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(last) = names.last().filter(|_| is_cut) {
            let mut query = Serializer::new(String::new());
            query.append_pair("last", &last.to_string());
            query.append_pair("n", &self.limit.to_string());
            query.extend_pairs(self.namespace.iter().map(|namespace| ("ns", namespace)));
            let link = format!("<{path}?{}>; rel=\"next\"", query.finish());
            headers.extend(HeaderValue::from_str(&link).ok().map(|link| (header::LINK, link)));
        }
        response
    }
}
