//! Method and path to a typed request. Pure: no I/O.

use hyper::{Method, StatusCode};

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `GET /v1/stats`
    Stats,
    /// `GET /metrics`
    Metrics,
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    /// Value of the `Allow` header, with 405.
    pub(crate) allow: Option<&'static str>,
}

const READ_ONLY: &str = "GET, HEAD";

/// Decodes the request line.
///
/// The refusal quotes neither method nor path: the client knows them, and logs stay clean.
pub(crate) fn decode(method: &Method, path: &str) -> Result<Request, Refusal> {
    let request = match path {
        "/v1/stats" => Request::Stats,
        "/metrics" => Request::Metrics,
        _ => {
            return Err(Refusal {
                status: StatusCode::NOT_FOUND,
                error: "No such resource; there are /v1/stats and /metrics".into(),
                allow: None,
            });
        }
    };
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            error: format!("Method not allowed here; allowed: {READ_ONLY}"),
            allow: Some(READ_ONLY),
        });
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_paths_decode() {
        assert_eq!(decode(&Method::GET, "/v1/stats"), Ok(Request::Stats));
        assert_eq!(decode(&Method::HEAD, "/metrics"), Ok(Request::Metrics));
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
        ] {
            for method in [Method::GET, Method::POST, Method::CONNECT] {
                let refusal = decode(&method, path).expect_err(path);
                assert_eq!(refusal.status, StatusCode::NOT_FOUND, "{path}");
            }
        }
    }

    #[test]
    fn wrong_method_is_405_and_names_the_right_ones() {
        let refusal = decode(&Method::DELETE, "/v1/stats").expect_err("DELETE");
        assert_eq!(refusal.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refusal.allow, Some("GET, HEAD"));
    }
}
