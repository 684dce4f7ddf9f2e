"""The verifiable reward trap in miniature: terse replies, and RLHF with a judge as the remedy."""
