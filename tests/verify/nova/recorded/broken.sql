/*M!999999\- enable the sandbox mode */ 
-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)
--
-- Host: localhost    Database: broken
-- ------------------------------------------------------
-- Server version	10.11.19-MariaDB-0+deb12u1

/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!40101 SET @OLD_CHARACTER_SET_RESULTS=@@CHARACTER_SET_RESULTS */;
/*!40101 SET @OLD_COLLATION_CONNECTION=@@COLLATION_CONNECTION */;
/*!40101 SET NAMES utf8mb4 */;
/*!40103 SET @OLD_TIME_ZONE=@@TIME_ZONE */;
/*!40103 SET TIME_ZONE='+00:00' */;
/*!40014 SET @OLD_UNIQUE_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */;
/*!40014 SET @OLD_FOREIGN_KEY_CHECKS=@@FOREIGN_KEY_CHECKS, FOREIGN_KEY_CHECKS=0 */;
/*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;
/*!40111 SET @OLD_SQL_NOTES=@@SQL_NOTES, SQL_NOTES=0 */;

--
-- Table structure for table `compute_nodes`
--

DROP TABLE IF EXISTS `compute_nodes`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `compute_nodes` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `service_id` int(11) DEFAULT NULL,
  `host` varchar(255) DEFAULT NULL,
  `uuid` varchar(36) DEFAULT NULL,
  `vcpus` int(11) NOT NULL,
  `memory_mb` int(11) NOT NULL,
  `local_gb` int(11) NOT NULL,
  `vcpus_used` int(11) NOT NULL,
  `memory_mb_used` int(11) NOT NULL,
  `local_gb_used` int(11) NOT NULL,
  `hypervisor_type` mediumtext NOT NULL,
  `hypervisor_version` int(11) NOT NULL,
  `hypervisor_hostname` varchar(255) DEFAULT NULL,
  `free_ram_mb` int(11) DEFAULT NULL,
  `free_disk_gb` int(11) DEFAULT NULL,
  `current_workload` int(11) DEFAULT NULL,
  `running_vms` int(11) DEFAULT NULL,
  `cpu_info` mediumtext NOT NULL,
  `disk_available_least` int(11) DEFAULT NULL,
  `host_ip` varchar(39) DEFAULT NULL,
  `supported_instances` text DEFAULT NULL,
  `metrics` text DEFAULT NULL,
  `pci_stats` text DEFAULT NULL,
  `extra_resources` text DEFAULT NULL,
  `stats` text DEFAULT NULL,
  `numa_topology` text DEFAULT NULL,
  `ram_allocation_ratio` float DEFAULT NULL,
  `cpu_allocation_ratio` float DEFAULT NULL,
  `disk_allocation_ratio` float DEFAULT NULL,
  `mapped` int(11) DEFAULT NULL,
  `created_at` datetime DEFAULT NULL,
  `updated_at` datetime DEFAULT NULL,
  `deleted_at` datetime DEFAULT NULL,
  `deleted` int(11) DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `uniq_compute_nodes0host0hypervisor_hostname0deleted` (`host`,`hypervisor_hostname`,`deleted`),
  UNIQUE KEY `compute_nodes_uuid_idx` (`uuid`)
) ENGINE=InnoDB AUTO_INCREMENT=5 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;

--
-- Dumping data for table `compute_nodes`
--

LOCK TABLES `compute_nodes` WRITE;
/*!40000 ALTER TABLE `compute_nodes` DISABLE KEYS */;
INSERT INTO `compute_nodes` VALUES
(1,NULL,'r1','7f49d373-f224-5ca0-8ae4-4e0a25a08959',0,0,0,0,0,0,'QEMU',8002000,'r1',NULL,NULL,NULL,NULL,'{\"model\": \"it\'s \\\"quoted\\\"\"}',NULL,NULL,NULL,NULL,'{\"nova_object.name\": \"PciDevicePoolList\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"objects\": []}, \"nova_object.changes\": [\"objects\"]}',NULL,'{}','{\"nova_object.name\": \"NUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"pcpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 1024, \"pinned_cpus\": [], \"siblings\": [[0, 8], [1, 9], [2, 10], [11, 3], [4, 12], [13, 5], [6, 14], [15, 7]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 1, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 0}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}, {\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 1, \"cpuset\": [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], \"pcpuset\": [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 1024, \"pinned_cpus\": [16, 24], \"siblings\": [[16, 24], [17, 25], [18, 26], [27, 19], [20, 28], [29, 21], [22, 30], [31, 23]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 1, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 1}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}, {\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 2, \"cpuset\": [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47], \"pcpuset\": [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 1024, \"pinned_cpus\": [32, 40], \"siblings\": [[32, 40], [33, 41], [34, 42], [43, 35], [36, 44], [45, 37], [46, 38], [47, 39]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 1, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 2}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}]}, \"nova_object.changes\": [\"cells\"]}',NULL,NULL,NULL,0,'2026-11-28 22:14:08',NULL,NULL,0),
(2,NULL,'r1-pages','ce545add-93bf-54c0-8095-f94fa089f4d6',0,0,0,0,0,0,'QEMU',8002000,'r1-pages',NULL,NULL,NULL,NULL,'{\"model\": \"it\'s \\\"quoted\\\"\"}',NULL,NULL,NULL,NULL,'{\"nova_object.name\": \"PciDevicePoolList\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"objects\": []}, \"nova_object.changes\": [\"objects\"]}',NULL,'{}','{\"nova_object.name\": \"NUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"pcpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 81920, \"pinned_cpus\": [], \"siblings\": [[0, 8], [1, 9], [2, 10], [11, 3], [4, 12], [13, 5], [6, 14], [15, 7]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 80, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 0}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}, {\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 1, \"cpuset\": [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], \"pcpuset\": [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 1024, \"pinned_cpus\": [16, 24], \"siblings\": [[16, 24], [17, 25], [18, 26], [27, 19], [20, 28], [29, 21], [22, 30], [31, 23]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 1, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 1}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}, {\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 2, \"cpuset\": [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47], \"pcpuset\": [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 1024, \"pinned_cpus\": [32, 40], \"siblings\": [[32, 40], [33, 41], [34, 42], [43, 35], [36, 44], [45, 37], [46, 38], [47, 39]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 1, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 2}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}]}, \"nova_object.changes\": [\"cells\"]}',NULL,NULL,NULL,0,'2026-11-28 22:14:08',NULL,NULL,0),
(3,NULL,'r2','fd34fbba-8ed0-5a87-8cd4-07b43245d375',0,0,0,0,0,0,'QEMU',8002000,'r2',NULL,NULL,NULL,NULL,'{\"model\": \"it\'s \\\"quoted\\\"\"}',NULL,NULL,NULL,NULL,'{\"nova_object.name\": \"PciDevicePoolList\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"objects\": [{\"nova_object.name\": \"PciDevicePool\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"product_id\": \"e3c5\", \"vendor_id\": \"8086\", \"numa_node\": 0, \"tags\": {\"dev_type\": \"type-PCI\", \"address\": \"0000:10:00.0\"}, \"count\": 1}, \"nova_object.changes\": [\"vendor_id\", \"numa_node\", \"tags\", \"product_id\", \"count\"]}, {\"nova_object.name\": \"PciDevicePool\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"product_id\": \"e3c5\", \"vendor_id\": \"8086\", \"numa_node\": 2, \"tags\": {\"dev_type\": \"type-PCI\", \"address\": \"0000:12:00.0\"}, \"count\": 1}, \"nova_object.changes\": [\"vendor_id\", \"numa_node\", \"tags\", \"product_id\", \"count\"]}, {\"nova_object.name\": \"PciDevicePool\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"product_id\": \"0e17\", \"vendor_id\": \"8086\", \"numa_node\": 1, \"tags\": {\"dev_type\": \"type-VF\", \"address\": \"0000:01:00.0\", \"physical_network\": \"a\", \"remote_managed\": \"false\"}, \"count\": 1}, \"nova_object.changes\": [\"vendor_id\", \"numa_node\", \"tags\", \"product_id\", \"count\"]}, {\"nova_object.name\": \"PciDevicePool\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"product_id\": \"0e17\", \"vendor_id\": \"8086\", \"numa_node\": 3, \"tags\": {\"dev_type\": \"type-VF\", \"address\": \"0000:03:00.0\", \"physical_network\": \"b\", \"remote_managed\": \"false\"}, \"count\": 1}, \"nova_object.changes\": [\"vendor_id\", \"numa_node\", \"tags\", \"product_id\", \"count\"]}]}, \"nova_object.changes\": [\"objects\"]}',NULL,'{}','{\"nova_object.name\": \"NUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"pcpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 0, \"pinned_cpus\": [], \"siblings\": [[0, 8], [1, 9], [2, 10], [3, 11], [4, 12], [5, 13], [6, 14], [7, 15]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 0}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}, {\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 1, \"cpuset\": [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], \"pcpuset\": [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 0, \"pinned_cpus\": [], \"siblings\": [[16, 24], [17, 25], [18, 26], [19, 27], [20, 28], [21, 29], [22, 30], [23, 31]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 1}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}, {\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 2, \"cpuset\": [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47], \"pcpuset\": [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 0, \"pinned_cpus\": [], \"siblings\": [[32, 40], [33, 41], [34, 42], [35, 43], [36, 44], [37, 45], [38, 46], [39, 47]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 2}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}, {\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 3, \"cpuset\": [48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63], \"pcpuset\": [48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 0, \"pinned_cpus\": [], \"siblings\": [[48, 56], [49, 57], [50, 58], [51, 59], [52, 60], [53, 61], [54, 62], [55, 63]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 3}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}]}, \"nova_object.changes\": [\"cells\"]}',NULL,NULL,NULL,0,'2026-11-28 22:14:08',NULL,NULL,0),
(4,NULL,'r3','5b5721dc-5339-5e6f-894e-4cb122f157de',0,0,0,0,0,0,'QEMU',8002000,'r3',NULL,NULL,NULL,NULL,'{\"model\": \"it\'s \\\"quoted\\\"\"}',NULL,NULL,NULL,NULL,'{\"nova_object.name\": \"PciDevicePoolList\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"objects\": []}, \"nova_object.changes\": [\"objects\"]}',NULL,'{}','{\"nova_object.name\": \"NUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"NUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.5\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"pcpuset\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], \"memory\": 73728, \"cpu_usage\": 0, \"memory_usage\": 1024, \"pinned_cpus\": [0], \"siblings\": [[0, 8], [1, 9], [2, 10], [11, 3], [4, 12], [13, 5], [6, 14], [15, 7]], \"mempages\": [{\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 4, \"total\": 2097152, \"used\": 0, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}, {\"nova_object.name\": \"NUMAPagesTopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.1\", \"nova_object.data\": {\"size_kb\": 1048576, \"total\": 64, \"used\": 1, \"reserved\": 0}, \"nova_object.changes\": [\"used\", \"size_kb\", \"reserved\", \"total\"]}], \"network_metadata\": {\"nova_object.name\": \"NetworkMetadata\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.0\", \"nova_object.data\": {\"physnets\": [], \"tunneled\": false}, \"nova_object.changes\": [\"physnets\", \"tunneled\"]}, \"socket\": 0}, \"nova_object.changes\": [\"cpu_usage\", \"network_metadata\", \"siblings\", \"pinned_cpus\", \"pcpuset\", \"cpuset\", \"memory\", \"memory_usage\", \"socket\", \"mempages\", \"id\"]}]}, \"nova_object.changes\": [\"cells\"]}',NULL,NULL,NULL,0,'2026-11-28 22:14:08',NULL,NULL,0);
/*!40000 ALTER TABLE `compute_nodes` ENABLE KEYS */;
UNLOCK TABLES;

--
-- Table structure for table `instances`
--

DROP TABLE IF EXISTS `instances`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `instances` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `user_id` varchar(255) DEFAULT NULL,
  `project_id` varchar(255) DEFAULT NULL,
  `image_ref` varchar(255) DEFAULT NULL,
  `kernel_id` varchar(255) DEFAULT NULL,
  `ramdisk_id` varchar(255) DEFAULT NULL,
  `hostname` varchar(255) DEFAULT NULL,
  `launch_index` int(11) DEFAULT NULL,
  `key_name` varchar(255) DEFAULT NULL,
  `key_data` mediumtext DEFAULT NULL,
  `power_state` int(11) DEFAULT NULL,
  `vm_state` varchar(255) DEFAULT NULL,
  `task_state` varchar(255) DEFAULT NULL,
  `memory_mb` int(11) DEFAULT NULL,
  `vcpus` int(11) DEFAULT NULL,
  `root_gb` int(11) DEFAULT NULL,
  `ephemeral_gb` int(11) DEFAULT NULL,
  `ephemeral_key_uuid` varchar(36) DEFAULT NULL,
  `host` varchar(255) DEFAULT NULL,
  `node` varchar(255) DEFAULT NULL,
  `compute_id` bigint(20) DEFAULT NULL,
  `instance_type_id` int(11) DEFAULT NULL,
  `user_data` mediumtext DEFAULT NULL,
  `reservation_id` varchar(255) DEFAULT NULL,
  `launched_at` datetime DEFAULT NULL,
  `terminated_at` datetime DEFAULT NULL,
  `availability_zone` varchar(255) DEFAULT NULL,
  `display_name` varchar(255) DEFAULT NULL,
  `display_description` varchar(255) DEFAULT NULL,
  `launched_on` mediumtext DEFAULT NULL,
  `locked` tinyint(1) DEFAULT NULL,
  `locked_by` enum('owner','admin') DEFAULT NULL,
  `os_type` varchar(255) DEFAULT NULL,
  `architecture` varchar(255) DEFAULT NULL,
  `vm_mode` varchar(255) DEFAULT NULL,
  `uuid` varchar(36) NOT NULL,
  `root_device_name` varchar(255) DEFAULT NULL,
  `default_ephemeral_device` varchar(255) DEFAULT NULL,
  `default_swap_device` varchar(255) DEFAULT NULL,
  `config_drive` varchar(255) DEFAULT NULL,
  `access_ip_v4` varchar(39) DEFAULT NULL,
  `access_ip_v6` varchar(39) DEFAULT NULL,
  `auto_disk_config` tinyint(1) DEFAULT NULL,
  `progress` int(11) DEFAULT NULL,
  `shutdown_terminate` tinyint(1) DEFAULT NULL,
  `disable_terminate` tinyint(1) DEFAULT NULL,
  `cell_name` varchar(255) DEFAULT NULL,
  `cleaned` int(11) DEFAULT NULL,
  `hidden` tinyint(1) DEFAULT NULL,
  `created_at` datetime DEFAULT NULL,
  `updated_at` datetime DEFAULT NULL,
  `deleted_at` datetime DEFAULT NULL,
  `deleted` int(11) DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `uniq_instances0uuid` (`uuid`),
  KEY `instances_host_deleted_cleaned_idx` (`host`,`deleted`,`cleaned`),
  KEY `instances_project_id_deleted_idx` (`project_id`,`deleted`),
  KEY `instances_reservation_id_idx` (`reservation_id`),
  KEY `instances_host_node_deleted_idx` (`host`,`node`,`deleted`),
  KEY `instances_compute_id_deleted_idx` (`compute_id`,`deleted`),
  KEY `instances_project_id_idx` (`project_id`),
  KEY `instances_terminated_at_launched_at_idx` (`terminated_at`,`launched_at`),
  KEY `instances_task_state_updated_at_idx` (`task_state`,`updated_at`),
  KEY `instances_updated_at_project_id_idx` (`updated_at`,`project_id`),
  KEY `instances_deleted_created_at_idx` (`deleted`,`created_at`),
  KEY `instances_uuid_deleted_idx` (`uuid`,`deleted`)
) ENGINE=InnoDB AUTO_INCREMENT=6 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;

--
-- Dumping data for table `instances`
--

LOCK TABLES `instances` WRITE;
/*!40000 ALTER TABLE `instances` DISABLE KEYS */;
INSERT INTO `instances` VALUES
(1,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'active',NULL,NULL,NULL,NULL,NULL,NULL,'r1','r1',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'g',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'00000000-0000-4000-8000-000000000001',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,NULL,0,0,'2026-11-28 22:14:08',NULL,NULL,0),
(2,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'active',NULL,NULL,NULL,NULL,NULL,NULL,'r1-pages','r1-pages',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'g',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'00000000-0000-4000-8000-000000000011',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,NULL,0,0,'2026-11-28 22:14:08',NULL,NULL,0),
(3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'active',NULL,NULL,NULL,NULL,NULL,NULL,'r2','r2',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'g',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'00000000-0000-4000-8000-000000000002',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,NULL,0,0,'2026-11-28 22:14:08',NULL,NULL,0),
(4,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'active',NULL,NULL,NULL,NULL,NULL,NULL,'r3','r3',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'g',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'00000000-0000-4000-8000-000000000031',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,NULL,0,0,'2026-11-28 22:14:08',NULL,NULL,0),
(5,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'active',NULL,NULL,NULL,NULL,NULL,NULL,'r3','r3',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'g',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'00000000-0000-4000-8000-000000000003',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,NULL,0,0,'2026-11-28 22:14:08',NULL,NULL,0);
/*!40000 ALTER TABLE `instances` ENABLE KEYS */;
UNLOCK TABLES;

--
-- Table structure for table `instance_extra`
--

DROP TABLE IF EXISTS `instance_extra`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `instance_extra` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `instance_uuid` varchar(36) NOT NULL,
  `device_metadata` text DEFAULT NULL,
  `numa_topology` text DEFAULT NULL,
  `pci_requests` text DEFAULT NULL,
  `flavor` text DEFAULT NULL,
  `vcpu_model` text DEFAULT NULL,
  `migration_context` text DEFAULT NULL,
  `keypairs` text DEFAULT NULL,
  `trusted_certs` text DEFAULT NULL,
  `resources` text DEFAULT NULL,
  `created_at` datetime DEFAULT NULL,
  `updated_at` datetime DEFAULT NULL,
  `deleted_at` datetime DEFAULT NULL,
  `deleted` int(11) DEFAULT NULL,
  PRIMARY KEY (`id`),
  KEY `instance_extra_idx` (`instance_uuid`),
  CONSTRAINT `instance_extra_ibfk_1` FOREIGN KEY (`instance_uuid`) REFERENCES `instances` (`uuid`)
) ENGINE=InnoDB AUTO_INCREMENT=6 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;

--
-- Dumping data for table `instance_extra`
--

LOCK TABLES `instance_extra` WRITE;
/*!40000 ALTER TABLE `instance_extra` DISABLE KEYS */;
INSERT INTO `instance_extra` VALUES
(1,'00000000-0000-4000-8000-000000000001',NULL,'{\"nova_object.name\": \"InstanceNUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.3\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 1, \"cpuset\": [], \"pcpuset\": [0, 1], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"0\": 16, \"1\": 24}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}, {\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 2, \"cpuset\": [], \"pcpuset\": [2, 3], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"2\": 32, \"3\": 40}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}, {\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [], \"pcpuset\": [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": null, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}], \"emulator_threads_policy\": null}, \"nova_object.changes\": [\"cells\", \"emulator_threads_policy\"]}','[]','{\"cur\": {\"nova_object.name\": \"Flavor\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"id\": 1, \"name\": \"f\", \"memory_mb\": 3072, \"vcpus\": 21, \"root_gb\": 0, \"ephemeral_gb\": 0, \"flavorid\": \"f\", \"swap\": 0, \"rxtx_factor\": 1.0, \"vcpu_weight\": 0, \"disabled\": false, \"is_public\": true, \"extra_specs\": {\"hw:cpu_policy\": \"dedicated\", \"hw:cpu_thread_policy\": \"prefer\", \"hw:mem_page_size\": \"1048576\", \"hw:numa_nodes\": \"3\", \"hw:numa_cpus.0\": \"0,1\", \"hw:numa_mem.0\": \"1024\", \"hw:numa_cpus.1\": \"2,3\", \"hw:numa_mem.1\": \"1024\", \"hw:numa_cpus.2\": \"4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20\", \"hw:numa_mem.2\": \"1024\"}}, \"nova_object.changes\": [\"vcpu_weight\", \"memory_mb\", \"is_public\", \"name\", \"swap\", \"disabled\", \"root_gb\", \"flavorid\", \"extra_specs\", \"ephemeral_gb\", \"vcpus\", \"rxtx_factor\", \"id\"]}, \"old\": null, \"new\": null}',NULL,NULL,NULL,NULL,NULL,'2026-11-28 22:14:08',NULL,NULL,0),
(2,'00000000-0000-4000-8000-000000000011',NULL,'{\"nova_object.name\": \"InstanceNUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.3\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 1, \"cpuset\": [], \"pcpuset\": [0, 1], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"0\": 16, \"1\": 24}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}, {\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 2, \"cpuset\": [], \"pcpuset\": [2, 3], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"2\": 32, \"3\": 40}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}, {\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [], \"pcpuset\": [4, 5], \"cpuset_reserved\": null, \"memory\": 81920, \"pagesize\": 1048576, \"cpu_pinning_raw\": null, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}], \"emulator_threads_policy\": null}, \"nova_object.changes\": [\"cells\", \"emulator_threads_policy\"]}','[]','{\"cur\": {\"nova_object.name\": \"Flavor\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"id\": 1, \"name\": \"f\", \"memory_mb\": 83968, \"vcpus\": 6, \"root_gb\": 0, \"ephemeral_gb\": 0, \"flavorid\": \"f\", \"swap\": 0, \"rxtx_factor\": 1.0, \"vcpu_weight\": 0, \"disabled\": false, \"is_public\": true, \"extra_specs\": {\"hw:cpu_policy\": \"dedicated\", \"hw:cpu_thread_policy\": \"prefer\", \"hw:mem_page_size\": \"1048576\", \"hw:numa_nodes\": \"3\", \"hw:numa_cpus.0\": \"0,1\", \"hw:numa_mem.0\": \"1024\", \"hw:numa_cpus.1\": \"2,3\", \"hw:numa_mem.1\": \"1024\", \"hw:numa_cpus.2\": \"4,5\", \"hw:numa_mem.2\": \"81920\"}}, \"nova_object.changes\": [\"vcpu_weight\", \"memory_mb\", \"is_public\", \"name\", \"swap\", \"disabled\", \"root_gb\", \"flavorid\", \"extra_specs\", \"ephemeral_gb\", \"vcpus\", \"rxtx_factor\", \"id\"]}, \"old\": null, \"new\": null}',NULL,NULL,NULL,NULL,NULL,'2026-11-28 22:14:08',NULL,NULL,0),
(3,'00000000-0000-4000-8000-000000000002',NULL,'{\"nova_object.name\": \"InstanceNUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.3\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 1, \"cpuset\": [], \"pcpuset\": [0, 1], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"0\": 16, \"1\": 24}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}, {\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 3, \"cpuset\": [], \"pcpuset\": [2, 3], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"2\": 32, \"3\": 40}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}], \"emulator_threads_policy\": null}, \"nova_object.changes\": [\"cells\", \"emulator_threads_policy\"]}','[{\"count\": 1, \"spec\": [{\"physical_network\": \"a\"}], \"alias_name\": null, \"is_new\": false, \"numa_policy\": \"required\", \"request_id\": \"dbd39daa-7088-561a-ba35-504bdc79d09f\", \"requester_id\": null}, {\"count\": 1, \"spec\": [{\"physical_network\": \"b\"}], \"alias_name\": null, \"is_new\": false, \"numa_policy\": \"required\", \"request_id\": \"97439b68-64da-5521-aa2b-b90d26a556a5\", \"requester_id\": null}]','{\"cur\": {\"nova_object.name\": \"Flavor\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"id\": 1, \"name\": \"f\", \"memory_mb\": 2048, \"vcpus\": 4, \"root_gb\": 0, \"ephemeral_gb\": 0, \"flavorid\": \"f\", \"swap\": 0, \"rxtx_factor\": 1.0, \"vcpu_weight\": 0, \"disabled\": false, \"is_public\": true, \"extra_specs\": {\"hw:cpu_policy\": \"dedicated\", \"hw:cpu_thread_policy\": \"prefer\", \"hw:mem_page_size\": \"1048576\", \"hw:numa_nodes\": \"2\", \"hw:numa_cpus.0\": \"0,1\", \"hw:numa_mem.0\": \"1024\", \"hw:numa_cpus.1\": \"2,3\", \"hw:numa_mem.1\": \"1024\"}}, \"nova_object.changes\": [\"vcpu_weight\", \"memory_mb\", \"is_public\", \"name\", \"swap\", \"disabled\", \"root_gb\", \"flavorid\", \"extra_specs\", \"ephemeral_gb\", \"vcpus\", \"rxtx_factor\", \"id\"]}, \"old\": null, \"new\": null}',NULL,NULL,NULL,NULL,NULL,'2026-11-28 22:14:08',NULL,NULL,0),
(4,'00000000-0000-4000-8000-000000000031',NULL,'{\"nova_object.name\": \"InstanceNUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.3\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [], \"pcpuset\": [0], \"cpuset_reserved\": null, \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"0\": 0}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"prefer\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}], \"emulator_threads_policy\": null}, \"nova_object.changes\": [\"cells\", \"emulator_threads_policy\"]}','[]','{\"cur\": {\"nova_object.name\": \"Flavor\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"id\": 1, \"name\": \"f\", \"memory_mb\": 1024, \"vcpus\": 1, \"root_gb\": 0, \"ephemeral_gb\": 0, \"flavorid\": \"f\", \"swap\": 0, \"rxtx_factor\": 1.0, \"vcpu_weight\": 0, \"disabled\": false, \"is_public\": true, \"extra_specs\": {\"hw:cpu_policy\": \"dedicated\", \"hw:cpu_thread_policy\": \"prefer\", \"hw:mem_page_size\": \"1048576\", \"hw:numa_nodes\": \"1\", \"hw:numa_cpus.0\": \"0\", \"hw:numa_mem.0\": \"1024\"}}, \"nova_object.changes\": [\"vcpu_weight\", \"memory_mb\", \"is_public\", \"name\", \"swap\", \"disabled\", \"root_gb\", \"flavorid\", \"extra_specs\", \"ephemeral_gb\", \"vcpus\", \"rxtx_factor\", \"id\"]}, \"old\": null, \"new\": null}',NULL,NULL,NULL,NULL,NULL,'2026-11-28 22:14:08',NULL,NULL,0),
(5,'00000000-0000-4000-8000-000000000003',NULL,'{\"nova_object.name\": \"InstanceNUMATopology\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.3\", \"nova_object.data\": {\"cells\": [{\"nova_object.name\": \"InstanceNUMACell\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.6\", \"nova_object.data\": {\"id\": 0, \"cpuset\": [], \"pcpuset\": [0, 1], \"cpuset_reserved\": [8], \"memory\": 1024, \"pagesize\": 1048576, \"cpu_pinning_raw\": {\"0\": 1, \"1\": 2}, \"cpu_policy\": \"dedicated\", \"cpu_thread_policy\": \"isolate\"}, \"nova_object.changes\": [\"cpu_thread_policy\", \"cpuset_reserved\", \"pcpuset\", \"cpuset\", \"memory\", \"pagesize\", \"cpu_pinning_raw\", \"cpu_policy\", \"id\"]}], \"emulator_threads_policy\": \"isolate\"}, \"nova_object.changes\": [\"cells\", \"emulator_threads_policy\"]}','[]','{\"cur\": {\"nova_object.name\": \"Flavor\", \"nova_object.namespace\": \"nova\", \"nova_object.version\": \"1.2\", \"nova_object.data\": {\"id\": 1, \"name\": \"f\", \"memory_mb\": 1024, \"vcpus\": 2, \"root_gb\": 0, \"ephemeral_gb\": 0, \"flavorid\": \"f\", \"swap\": 0, \"rxtx_factor\": 1.0, \"vcpu_weight\": 0, \"disabled\": false, \"is_public\": true, \"extra_specs\": {\"hw:cpu_policy\": \"dedicated\", \"hw:cpu_thread_policy\": \"isolate\", \"hw:mem_page_size\": \"1048576\", \"hw:emulator_threads_policy\": \"isolate\", \"hw:numa_nodes\": \"1\", \"hw:numa_cpus.0\": \"0,1\", \"hw:numa_mem.0\": \"1024\"}}, \"nova_object.changes\": [\"vcpu_weight\", \"memory_mb\", \"is_public\", \"name\", \"swap\", \"disabled\", \"root_gb\", \"flavorid\", \"extra_specs\", \"ephemeral_gb\", \"vcpus\", \"rxtx_factor\", \"id\"]}, \"old\": null, \"new\": null}',NULL,NULL,NULL,NULL,NULL,'2026-11-28 22:14:08',NULL,NULL,0);
/*!40000 ALTER TABLE `instance_extra` ENABLE KEYS */;
UNLOCK TABLES;

--
-- Table structure for table `pci_devices`
--

DROP TABLE IF EXISTS `pci_devices`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `pci_devices` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `uuid` varchar(36) DEFAULT NULL,
  `compute_node_id` int(11) NOT NULL,
  `address` varchar(12) NOT NULL,
  `vendor_id` varchar(4) NOT NULL,
  `product_id` varchar(4) NOT NULL,
  `dev_type` varchar(8) NOT NULL,
  `dev_id` varchar(255) DEFAULT NULL,
  `label` varchar(255) NOT NULL,
  `status` varchar(36) NOT NULL,
  `request_id` varchar(36) DEFAULT NULL,
  `extra_info` text DEFAULT NULL,
  `instance_uuid` varchar(36) DEFAULT NULL,
  `numa_node` int(11) DEFAULT NULL,
  `parent_addr` varchar(12) DEFAULT NULL,
  `created_at` datetime DEFAULT NULL,
  `updated_at` datetime DEFAULT NULL,
  `deleted_at` datetime DEFAULT NULL,
  `deleted` int(11) DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `uniq_pci_devices0compute_node_id0address0deleted` (`compute_node_id`,`address`,`deleted`),
  KEY `ix_pci_devices_instance_uuid_deleted` (`instance_uuid`,`deleted`),
  KEY `ix_pci_devices_compute_node_id_parent_addr_deleted` (`compute_node_id`,`parent_addr`,`deleted`),
  KEY `ix_pci_devices_compute_node_id_deleted` (`compute_node_id`,`deleted`),
  CONSTRAINT `pci_devices_ibfk_1` FOREIGN KEY (`compute_node_id`) REFERENCES `compute_nodes` (`id`)
) ENGINE=InnoDB AUTO_INCREMENT=5 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;

--
-- Dumping data for table `pci_devices`
--

LOCK TABLES `pci_devices` WRITE;
/*!40000 ALTER TABLE `pci_devices` DISABLE KEYS */;
INSERT INTO `pci_devices` VALUES
(1,NULL,3,'0000:10:00.0','8086','e3c5','type-PCI','pci_0000_10_00_0','label_8086_e3c5','available',NULL,'{}',NULL,0,NULL,'2026-11-28 22:14:08',NULL,NULL,0),
(2,NULL,3,'0000:12:00.0','8086','e3c5','type-PCI','pci_0000_12_00_0','label_8086_e3c5','available',NULL,'{}',NULL,2,NULL,'2026-11-28 22:14:08',NULL,NULL,0),
(3,NULL,3,'0000:01:00.0','8086','0e17','type-VF','pci_0000_01_00_0','label_8086_0e17','allocated','dbd39daa-7088-561a-ba35-504bdc79d09f','{}','00000000-0000-4000-8000-000000000002',1,NULL,'2026-11-28 22:14:08',NULL,NULL,0),
(4,NULL,3,'0000:03:00.0','8086','0e17','type-VF','pci_0000_03_00_0','label_8086_0e17','allocated','97439b68-64da-5521-aa2b-b90d26a556a5','{}','00000000-0000-4000-8000-000000000002',3,NULL,'2026-11-28 22:14:08',NULL,NULL,0);
/*!40000 ALTER TABLE `pci_devices` ENABLE KEYS */;
UNLOCK TABLES;
/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE */;

/*!40101 SET SQL_MODE=@OLD_SQL_MODE */;
/*!40014 SET FOREIGN_KEY_CHECKS=@OLD_FOREIGN_KEY_CHECKS */;
/*!40014 SET UNIQUE_CHECKS=@OLD_UNIQUE_CHECKS */;
/*!40101 SET CHARACTER_SET_CLIENT=@OLD_CHARACTER_SET_CLIENT */;
/*!40101 SET CHARACTER_SET_RESULTS=@OLD_CHARACTER_SET_RESULTS */;
/*!40101 SET COLLATION_CONNECTION=@OLD_COLLATION_CONNECTION */;
/*!40111 SET SQL_NOTES=@OLD_SQL_NOTES */;

-- Dump completed on 2026-11-28 22:14:08
