//! A failure as an HTTP answer: the table's status, an `ErrorResponse` as body, and the headers that belong to it.

use axum::response::{IntoResponse, Response};
use chatbox_proto::{error_code::ErrorCode, json, status::Failure, v1};
use http::{HeaderName, HeaderValue, StatusCode, header};

/// A failure on its way to the client.
#[derive(Debug)]
pub(crate) struct HttpFailure {
    failure: Failure,
    status: StatusCode,
}

/// Names one failure in the log.
const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

impl HttpFailure {
    /// As an answer with the id under which the log has it.
    pub(crate) fn correlated(self, id: &str) -> Response {
        let mut response = self.answer(Some(id));
        if let Ok(id) = HeaderValue::try_from(id) {
            response.headers_mut().insert(CORRELATION_ID, id);
        }
        response
    }

    /// With another status than the table's, where HTTP has a better one.
    pub(crate) fn with_status(status: StatusCode, failure: Failure) -> Self {
        Self { failure, status }
    }
}

impl From<Failure> for HttpFailure {
    fn from(failure: Failure) -> Self {
        let status = StatusCode::from_u16(failure.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { failure, status }
    }
}

impl HttpFailure {
    fn answer(self, correlation_id: Option<&str>) -> Response {
        let Self { failure, status } = self;
        let retry_after = failure.retry_after;
        let mut error = failure.into_event(String::new());
        error.metadata.extend(correlation_id.map(|id| ("correlation_id".to_owned(), id.to_owned())));
        let body = json::to_vec(&v1::ErrorResponse { error: Some(error) });
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(delay) = retry_after {
            // Whole seconds, and never "at once".
            let seconds = delay.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::try_from(seconds.to_string()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for HttpFailure {
    fn into_response(self) -> Response {
        self.answer(None)
    }
}

/// No such route.
pub(crate) async fn not_found() -> HttpFailure {
    Failure::new(ErrorCode::NotFound, "ROUTE_NOT_FOUND", "there is nothing here").into()
}

/// The route exists, the method does not.
pub(crate) async fn method_not_allowed() -> HttpFailure {
    let failure = Failure::new(ErrorCode::Unimplemented, "METHOD_NOT_ALLOWED", "the route does not have this method");
    HttpFailure::with_status(StatusCode::METHOD_NOT_ALLOWED, failure)
}
