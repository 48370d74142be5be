"""fraud-scorer: the shell around the pure core, from Kafka to decisions and their audit trail."""
