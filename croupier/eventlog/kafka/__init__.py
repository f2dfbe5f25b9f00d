"""An event log in the topics of an Apache Kafka cluster, for any number of machines."""
