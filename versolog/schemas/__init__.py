"""The facts on the wire: Avro schemas, their codec, the topics and the errors. Imports nothing else of versolog."""
