//! The web page: files in this program, without anything from other hosts, and the reference of the API.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::extract::At;
use super::problem::{Answer, Problem};

/// Scripts and styles come from here alone, and none stands in the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; \
     frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// Name, kind and text of every file.
const FILES: [(&str, &str, &str); 10] = [
    ("style.css", CSS, include_str!("page/style.css")),
    ("app.js", JAVASCRIPT, include_str!("page/app.js")),
    ("base.js", JAVASCRIPT, include_str!("page/base.js")),
    ("search.js", JAVASCRIPT, include_str!("page/search.js")),
    ("jobs.js", JAVASCRIPT, include_str!("page/jobs.js")),
    ("releases.js", JAVASCRIPT, include_str!("page/releases.js")),
    ("reports.js", JAVASCRIPT, include_str!("page/reports.js")),
    ("cluster.js", JAVASCRIPT, include_str!("page/cluster.js")),
    ("docs.js", JAVASCRIPT, include_str!("page/docs.js")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

fn text(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-cache")], text).into_response()
}

/// The page.
pub async fn index() -> Response {
    text(HTML, include_str!("page/index.html"))
}

/// The reference of the API.
pub async fn reference() -> Response {
    text(HTML, include_str!("page/docs.html"))
}

/// A file of either.
pub async fn file(At(name): At<String>) -> Answer<Response> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let (_, kind, file) = found.ok_or_else(|| Problem::not_found(format!("the page has no file `{name}`")))?;
    Ok(text(kind, file))
}

/// An address without a meaning.
pub async fn nothing_there(uri: Uri) -> Problem {
    Problem::not_found(format!("nothing is at `{}`: /openapi.json has what there is", uri.path()))
}

/// An address that is asked in another way.
pub async fn not_so(method: Method, uri: Uri) -> Problem {
    let detail = format!("`{}` does not answer {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "This is not how to ask here", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_light_and_needs_nobody_else() {
        let pages = [include_str!("page/index.html"), include_str!("page/docs.html")];
        let texts: Vec<&str> = FILES.iter().map(|(.., text)| *text).chain(pages).collect();
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        assert!(bytes < 300_000, "{bytes} bytes");
        for text in texts {
            let elsewhere = text.replace("http://www.w3.org/", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "something is from elsewhere");
            assert!(!text.contains("style=\"") && !text.contains("onclick="), "the policy forbids it");
        }
    }
}
