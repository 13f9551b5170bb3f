"""All uses of private torch APIs: module tracking, saved tensors, patches, tracing."""
