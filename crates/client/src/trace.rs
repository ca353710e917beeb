//! The caller's trace goes with the call: W3C Trace Context in the metadata.
//!
//! Whoever has an OpenTelemetry context (its own, or that of a `tracing` span under `tracing-opentelemetry`) sees the
//! server's spans below it. Without one this is a look at a thread-local.

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use tonic::metadata::{MetadataMap, MetadataValue};

/// Adds `traceparent`, and `tracestate` if there is one.
pub(crate) fn inject(metadata: &mut MetadataMap) {
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        if !context.is_valid() {
            return;
        }
        let flags = context.trace_flags().to_u8();
        let parent = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
        if let Ok(parent) = MetadataValue::try_from(parent) {
            metadata.insert("traceparent", parent);
        }
        let state = context.trace_state().header();
        if let Ok(state) = MetadataValue::try_from(&state)
            && !state.is_empty()
        {
            metadata.insert("tracestate", state);
        }
    });
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{FutureExt, SpanContext, TraceFlags, TraceState};

    use super::*;

    fn injected() -> Option<String> {
        let mut metadata = MetadataMap::new();
        inject(&mut metadata);
        metadata.get("traceparent").map(|parent| parent.to_str().expect("text").to_owned())
    }

    #[tokio::test]
    async fn the_context_of_the_call_is_sent_and_nothing_without_one() {
        assert_eq!(injected(), None);
        let (trace, span) = (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128, 0xb7ad_6b71_6920_3331_u64);
        let context = SpanContext::new(trace.into(), span.into(), TraceFlags::SAMPLED, false, TraceState::default());
        let context = Context::new().with_remote_span_context(context);
        let sent = async { injected() }.with_context(context).await;
        assert_eq!(sent.as_deref(), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    }

    #[test]
    fn a_span_of_tracing_is_sent_too() {
        use opentelemetry::trace::TracerProvider;
        use tracing_subscriber::layer::SubscriberExt;
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("call");
            let _entered = span.enter();
            let sent = injected().expect("a parent");
            assert!(sent.starts_with("00-") && sent.ends_with("-01"), "{sent}");
        });
    }
}
