//! Method and path to a typed request. Pure: no I/O.

use hyper::{Method, StatusCode};
use tmem_base::name::is_guest_name;

/// What a client may ask for. Bodies are not decoded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    /// `GET /v1/stats`
    Stats,
    /// `GET /metrics`
    Metrics,
    /// `GET /v1/domains`
    Domains,
    /// `GET /v1/domains/{name}`
    Domain(&'a str),
    /// `PATCH /v1/domains/{name}`
    Change(&'a str),
    /// `POST /v1/domains/{name}/flush`
    Flush(&'a str),
    /// `GET /v1/freeable`
    Freeable,
    /// `POST /v1/guests`
    AddGuest,
    /// `DELETE /v1/guests/{name}`
    RemoveGuest(&'a str),
}

impl Request<'_> {
    /// Whether it asks for more than to be shown something.
    pub(crate) fn changes(self) -> bool {
        match self {
            Self::Stats | Self::Metrics | Self::Domains | Self::Domain(_) | Self::Freeable => false,
            Self::Change(_) | Self::Flush(_) | Self::AddGuest | Self::RemoveGuest(_) => true,
        }
    }
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    /// Value of the `Allow` header, with 405.
    pub(crate) allow: Option<&'static str>,
}

const GET: &str = "GET, HEAD";

/// Decodes the request line.
///
/// The refusal quotes neither method nor path: the client knows them, and logs stay clean.
pub(crate) fn decode<'a>(method: &Method, path: &'a str) -> Result<Request<'a>, Refusal> {
    let read = *method == Method::GET || *method == Method::HEAD;
    let (request, allow) = match *segments(path).as_slice() {
        ["v1", "stats"] => (read.then_some(Request::Stats), GET),
        ["metrics"] => (read.then_some(Request::Metrics), GET),
        ["v1", "domains"] => (read.then_some(Request::Domains), GET),
        ["v1", "freeable"] => (read.then_some(Request::Freeable), GET),
        ["v1", "domains", name] if is_guest_name(name) => {
            let request = match *method {
                Method::PATCH => Some(Request::Change(name)),
                _ => read.then_some(Request::Domain(name)),
            };
            (request, "GET, HEAD, PATCH")
        }
        ["v1", "domains", name, "flush"] if is_guest_name(name) => {
            let request = (*method == Method::POST).then_some(Request::Flush(name));
            (request, "POST")
        }
        ["v1", "guests"] => {
            let request = (*method == Method::POST).then_some(Request::AddGuest);
            (request, "POST")
        }
        ["v1", "guests", name] if is_guest_name(name) => {
            let request = (*method == Method::DELETE).then_some(Request::RemoveGuest(name));
            (request, "DELETE")
        }
        _ => {
            return Err(Refusal {
                status: StatusCode::NOT_FOUND,
                error: "No such resource; there are /v1/stats, /v1/domains, /v1/domains/{name}, \
                        /v1/domains/{name}/flush, /v1/freeable, /v1/guests, /v1/guests/{name} and \
                        /metrics"
                    .into(),
                allow: None,
            });
        }
    };
    request.ok_or_else(|| Refusal {
        status: StatusCode::METHOD_NOT_ALLOWED,
        error: format!("Method not allowed here; allowed: {allow}"),
        allow: Some(allow),
    })
}

/// The parts of a path between slashes; none of what is not absolute, or much too deep.
fn segments(path: &str) -> Vec<&str> {
    path.strip_prefix('/')
        .map(|path| path.splitn(6, '/').collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_paths_decode() {
        assert_eq!(decode(&Method::GET, "/v1/stats"), Ok(Request::Stats));
        assert_eq!(decode(&Method::HEAD, "/metrics"), Ok(Request::Metrics));
        let vm1 = "/v1/domains/vm1";
        assert_eq!(decode(&Method::GET, vm1), Ok(Request::Domain("vm1")));
        assert_eq!(decode(&Method::PATCH, vm1), Ok(Request::Change("vm1")));
        assert_eq!(
            decode(&Method::POST, "/v1/domains/a.b_c-d/flush"),
            Ok(Request::Flush("a.b_c-d"))
        );
        assert_eq!(decode(&Method::POST, "/v1/guests"), Ok(Request::AddGuest));
        assert_eq!(
            decode(&Method::DELETE, "/v1/guests/vm1"),
            Ok(Request::RemoveGuest("vm1"))
        );
    }

    #[test]
    fn unknown_path_is_404_whatever_the_method() {
        for path in [
            "",
            "/",
            "/v1",
            "/v1/stats/",
            "/v1/stats/../stats",
            "/V1/STATS",
            "*",
            "/v1/domains/",
            "/v1/domains/a%20b",
            "/v1/domains/a/flush/",
            "/v1/domains//flush",
            "v1/stats",
            "/////////////",
        ] {
            for method in [Method::GET, Method::POST, Method::CONNECT] {
                let refusal = decode(&method, path).expect_err(path);
                assert_eq!(refusal.status, StatusCode::NOT_FOUND, "{path}");
            }
        }
    }

    #[test]
    fn wrong_method_is_405_and_names_the_right_ones() {
        for (method, path, allow) in [
            (Method::DELETE, "/v1/stats", "GET, HEAD"),
            (Method::POST, "/v1/domains/a", "GET, HEAD, PATCH"),
            (Method::GET, "/v1/domains/a/flush", "POST"),
            (Method::GET, "/v1/guests/a", "DELETE"),
        ] {
            let refusal = decode(&method, path).expect_err(path);
            assert_eq!(refusal.status, StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(refusal.allow, Some(allow));
        }
    }
}
