//! Counts answered gRPC requests by method and status: a layer around all services of the port.
//!
//! A unary call that fails has its status in the headers of the answer, and so has a stream that was refused; what has
//! none there has begun well. A method that no service knows is answered as unimplemented, and is counted under one word:
//! nobody can make series by calling names.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::{BoxFuture, Either};
use http::{Request, Response};
use tower::{Layer, Service};

use crate::telemetry::Telemetry;

/// gRPC's code for a method that is not there.
const UNIMPLEMENTED: i32 = 12;
/// In place of a method that is not there.
const UNKNOWN_METHOD: &str = "unknown";

/// See the module.
#[derive(Clone)]
pub struct MeteredLayer {
    telemetry: Telemetry,
}

impl MeteredLayer {
    /// Counts into `telemetry`, if anybody looks there.
    pub fn new(telemetry: Telemetry) -> Self {
        Self { telemetry }
    }
}

impl<S> Layer<S> for MeteredLayer {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        Metered { inner, telemetry: self.telemetry.clone() }
    }
}

/// A service that is counted.
#[derive(Clone)]
pub struct Metered<S> {
    inner: S,
    telemetry: Telemetry,
}

impl<S, B, R> Service<Request<B>> for Metered<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: 'static,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !self.telemetry.is_on() {
            return Either::Left(self.inner.call(request));
        }
        let uri = request.uri().clone();
        let telemetry = self.telemetry.clone();
        let answer = self.inner.call(request);
        let counted = async move {
            let response = answer.await?;
            let code = code(&response);
            let method = if code == UNIMPLEMENTED { UNKNOWN_METHOD } else { uri.path().trim_start_matches('/') };
            telemetry.instruments().requests.record(method, code);
            Ok(response)
        };
        Either::Right(counted.boxed())
    }
}

fn code<R>(response: &Response<R>) -> i32 {
    let status = response.headers().get("grpc-status");
    status.and_then(|status| status.to_str().ok()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::telemetry::handle::Telemetry;

    async fn call(telemetry: &Telemetry, path: &str, status: Option<&'static str>) {
        let inner = tower::service_fn(move |_: Request<()>| async move {
            let mut response = Response::new(());
            if let Some(status) = status {
                response.headers_mut().insert("grpc-status", http::HeaderValue::from_static(status));
            }
            Ok::<_, Infallible>(response)
        });
        let request = Request::builder().uri(path).body(()).unwrap();
        MeteredLayer::new(telemetry.clone()).layer(inner).call(request).await.unwrap();
    }

    #[tokio::test]
    async fn methods_are_counted_and_names_that_nobody_has_are_not_kept() {
        let telemetry = Telemetry::start("a", understudy_types::NodeId::new(1), true).unwrap();
        call(&telemetry, "/understudy.v1.Kv/Get", None).await;
        call(&telemetry, "/understudy.v1.Kv/Get", Some("14")).await;
        for n in 0..1_000 {
            call(&telemetry, &format!("/understudy.v1.Kv/Made{n}"), Some("12")).await;
        }
        let mut seen = Vec::new();
        telemetry.instruments().requests.each(|method, code, count| seen.push((method.to_owned(), code, count)));
        let get = "understudy.v1.Kv/Get".to_owned();
        assert_eq!(seen, [(get.clone(), 0, 1), (get, 14, 1), ("unknown".to_owned(), 12, 1_000)]);
    }
}
