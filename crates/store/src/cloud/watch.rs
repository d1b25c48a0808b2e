//! Learning the HTTP status of a request, which the client library hides: it reports 409 and 412 as the same error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

/// Takes the status of the last response to a request that carries it among its extensions; 0 if there was none.
#[derive(Clone, Debug, Default)]
pub(super) struct StatusCell(Arc<AtomicU16>);

impl StatusCell {
    pub(super) fn get(&self) -> Option<u16> {
        Some(self.0.load(Ordering::Relaxed)).filter(|s| *s != 0)
    }

    pub(super) fn extensions(&self) -> object_store::Extensions {
        let mut extensions = object_store::Extensions::new();
        extensions.insert(self.clone());
        extensions
    }
}

/// Makes the usual HTTP clients, with a look at what they answer.
#[derive(Debug, Default)]
pub(super) struct WatchingConnector;

#[derive(Debug)]
struct WatchingClient {
    inner: HttpClient,
}

impl HttpConnector for WatchingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(WatchingClient { inner }))
    }
}

#[async_trait]
impl HttpService for WatchingClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let cell = request.extensions().get::<StatusCell>().cloned();
        if let Some(cell) = &cell {
            cell.0.store(0, Ordering::Relaxed);
        }
        let response = self.inner.execute(request).await?;
        if let Some(cell) = &cell {
            cell.0.store(response.status().as_u16(), Ordering::Relaxed);
        }
        Ok(response)
    }
}
